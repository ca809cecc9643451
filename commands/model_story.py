"""A model's story, printed for people: what `perennial models show` prints."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from commands import console
from commands.events import print_table
from perennial.bundle import Estimate
from perennial.story import Comparison, Judgement, Story
from perennial.story_page import duration


def print_story(story: Story) -> None:
    """Facts, classes, the gate, the times it was live, and the events."""
    console.out.print(_facts(story))
    console.out.print(_classes(story))
    for judgement in story.judgements:
        _print_judgement(judgement)
    if story.periods:
        console.out.print(_periods(story))
    for comparison in story.comparisons:
        _print_comparison(comparison)
    if story.events:
        print_table(story.events)


def _facts(story: Story) -> Table:
    manifest = story.model.manifest
    data, pretrained = manifest.dataset, manifest.pretrained
    colour = {"live": "green", "refused": "red", "rolled back": "red", "stopped": "red"}.get(story.status, "yellow")
    facts = Table(box=None, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")  # a digest or a path is there to be copied
    facts.add_row("version", f"{escape(story.model.version)} [{colour}]({story.status})[/]")
    if story.asked is not None:
        asked = story.asked
        facts.add_row("asked for", escape(f"{asked.at:%Y-%m-%d %H:%M:%S} UTC by {asked.who}: {asked.why}"))
    facts.add_row("classes", escape(", ".join(manifest.classes)))
    facts.add_row("backbone", escape(f"{manifest.backbone}, {manifest.strategy}: {manifest.why}"))
    facts.add_row("pretrained", escape(f"{pretrained.source} {pretrained.sha256}"))
    facts.add_row(
        "data",
        escape(
            f"{data.location}: {data.train} train, {data.validation} validation, {data.test} test; "
            f"{data.captures} of all these are captures"
        ),
    )
    facts.add_row("fingerprint", escape(data.fingerprint))
    for metric, value in manifest.metrics.items():
        facts.add_row(metric.replace("_", " "), _interval(value))
    facts.add_row("descends from", " < ".join(each.version for each in story.lineage) or "nothing: the first")
    if story.descendants:
        facts.add_row("made from it", ", ".join(story.descendants))
    facts.add_row("bundle", escape(f"{story.model.bundle_url} {story.model.digest}"))
    return facts


def _classes(story: Story) -> Table:
    table = Table("class", "precision", "recall", "rows", box=None)
    for label, entry in story.model.manifest.per_class.items():
        table.add_row(escape(label), _interval(entry.precision), _interval(entry.recall), str(entry.support))
    return table


def _print_judgement(judgement: Judgement) -> None:
    mark = "[green]passed[/]" if judgement.passed else "[red]refused[/]"
    console.out.print(f"gate, event {judgement.event}: {mark} against {escape(judgement.champion)}")
    rules = judgement.gate.get("rules") or ()
    for rule in rules:
        met = "[green]passed[/]" if rule["passed"] else "[red]broken[/]"
        console.out.print(f"  {met} {escape(str(rule['why']))}")
    if not rules:
        console.out.print(f"  {escape(judgement.why)}")


def _periods(story: Story) -> Table:
    table = Table("live from (UTC)", "until (UTC)", "for", "how it began", "how it ended", box=None)
    for column in table.columns:
        column.overflow = "fold"
    for period in story.periods:
        ended = period.ended
        table.add_row(
            f"{period.began:%Y-%m-%d %H:%M:%S}",
            f"{ended.at:%Y-%m-%d %H:%M:%S}" if ended else "now",
            duration(period.seconds(story.at)),
            escape(f"{period.how} by {period.actor}: {period.why}"),
            escape(f"{ended.how} by {ended.actor}, for {ended.by}: {ended.why}") if ended else "",
        )
    return table


def _print_comparison(comparison: Comparison) -> None:
    found = comparison.numbers
    live, before = (_interval(Estimate(**found[key])) for key in ("live", "before"))
    colour = {"passed": "green", "rolled back": "red"}.get(comparison.outcome, "yellow")
    event = f", event {comparison.event}" if comparison.event is not None else ""
    console.out.print(
        f"beside {escape(comparison.compared_with)}, which it replaced{event}: [{colour}]{comparison.outcome}[/], "
        f"on {found['rows']} labelled images {live} against {before}"
    )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
