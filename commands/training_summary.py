"""What `perennial train` says at the end: how good the model is, what was tried, and what to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perennial.bundle import Ladder, Manifest, Rung

_STYLES: Final = {"good": "green", "caution": "yellow", "bad": "red"}
_WEAKEST: Final = 3
_FINDINGS: Final = 10
_LOCATIONS: Final = 3


def print_summary(console: Console, manifest: Manifest, *, seconds: float, report: Path) -> None:
    """Print it. `seconds` is what training took in all."""
    from training import verdict

    found = verdict.verdict(manifest)
    style = _STYLES[found.tone]
    console.print(f"\n[bold]{escape(manifest.name)}[/] [dim]{manifest.version}[/]")
    console.print(f"[bold {style}]{found.title}.[/] {escape(found.headline)}")
    for note in found.notes:
        console.print(escape(note))
    _print_findings(console, manifest)
    if manifest.ladder:
        _print_ladder(console, manifest.ladder)
        if manifest.ladder.transfer:
            transfer = manifest.ladder.transfer
            console.print(f"\n[bold]Transfer: {escape(transfer.verdict)}[/]")
            for sentence in transfer.says:
                console.print(f"  {escape(sentence)}")
    else:
        console.print(f"\n[bold]{escape(verdict.title(manifest.strategy))}[/]: {escape(manifest.why)}")
    _print_weakest(console, manifest)
    dataset = manifest.dataset
    facts = Table.grid(padding=(0, 2))
    images = f"{dataset.train:,} train, {dataset.validation:,} validation, {dataset.test:,} test"
    for name, text in (("images", images), ("time", verdict.duration(seconds)), ("report", str(report))):
        facts.add_row(f"[dim]{name}[/]", escape(text))
    console.print()
    console.print(facts)


def _print_findings(console: Console, manifest: Manifest) -> None:
    if not manifest.findings:
        return
    console.print("\n[bold yellow]Findings about the data[/]")
    for finding in manifest.findings[:_FINDINGS]:
        console.print(f"  [yellow]{escape(finding.kind.replace('_', ' '))}[/]: {escape(finding.message)}")
        for location in finding.locations[:_LOCATIONS]:
            console.print(f"    [dim]{escape(location)}[/]")
        if len(finding.locations) > _LOCATIONS:
            console.print(f"    [dim]and {len(finding.locations) - _LOCATIONS:,} more[/]")
    if len(manifest.findings) > _FINDINGS:
        console.print(f"  and {len(manifest.findings) - _FINDINGS:,} more in the report")


def _print_ladder(console: Console, ladder: Ladder) -> None:
    from training import verdict

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("rung")
    for name in ("accuracy %", "training", "ms/image", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for rung in ladder.rungs:
        chosen = rung.name == ladder.chosen
        name = escape(verdict.title(rung.name))
        table.add_row(f"[green]> {name}[/]" if chosen else f"  {name}", *_cells(rung), style="bold" if chosen else "")
    console.print(f"\n[bold]The ladder[/], compared on {escape(ladder.selection)}")
    console.print(table)
    for rung in ladder.rungs:
        if not rung.tried:
            console.print(f"  [dim]{escape(verdict.title(rung.name))} was not tried: {escape(rung.why)}[/]")


def _cells(rung: Rung) -> tuple[str, str, str, str]:
    from training import verdict

    accuracy = "not tried"
    if rung.accuracy:
        half = (rung.accuracy.high - rung.accuracy.low) / 2
        accuracy = f"{100 * rung.accuracy.value:.1f} ± {100 * half:.1f}"
    seconds = f"{'' if rung.tried else '~ '}{verdict.duration(rung.seconds)}" if rung.seconds else "-"
    milliseconds = "-" if rung.milliseconds is None else f"{rung.milliseconds:.3g}"
    return accuracy, seconds, milliseconds, verdict.amount(rung.parameters) if rung.parameters else "-"


def _print_weakest(console: Console, manifest: Manifest) -> None:
    tested = [(name, each) for name, each in manifest.per_class.items() if each.support and each.f1]
    if len(tested) < 2:
        return
    tested.sort(key=lambda item: item[1].f1.value if item[1].f1 else 0.0)
    few = len(tested) <= _WEAKEST
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("class" if few else "weakest classes", overflow="ellipsis")
    for name in ("F1 %", "precision %", "recall %", "images"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in tested[:_WEAKEST]:
        if each.f1:
            f1 = f"{100 * each.f1.value:.1f} ({100 * each.f1.low:.0f} to {100 * each.f1.high:.0f})"
            shares = (f"{100 * share.value:.1f}" for share in (each.precision, each.recall))
            table.add_row(escape(name), f1, *shares, f"{each.support:,}")
    console.print(table)
