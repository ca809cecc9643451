"""What `perennial train` says about tasks that were built so that one thing is true of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.training import fitting, tasks
from benchmarks.training.fitting import AUTO, Recipe, Trained
from benchmarks.training.results import Measurement, Sheet, listed

NEGATIVE: Final = "permuted-gratings"
SIMPLE: Final = "colour-patches"
DUPLICATES: Final = "planted-duplicates"
TASKS: Final = (NEGATIVE, SIMPLE, DUPLICATES)
#: What each is to be called.
ASKED: Final = {
    NEGATIVE: "transfer is called negative",
    SIMPLE: "the simple baseline is said to suffice",
    DUPLICATES: "every copy of a held-out image is found",
}
AS_ASKED: Final = "as_asked"
SAYS: Final = "says"


def measure(
    sheet: Sheet,
    recipe: Recipe,
    folder: Path,
    *,
    names: Sequence[str],
    seeds: int,
    say: Callable[[str], None],
) -> None:
    """Draw each task's images, train with `auto`, and keep what the manifest says in the rows' notes."""
    for name in names:
        for seed in range(seeds):
            if sheet.has(name, AUTO, seed):
                continue
            made = folder / "made" / f"{name}-{seed}"
            shutil.rmtree(made, ignore_errors=True)
            planted = draw(name, made, seed, recipe.most)
            found = fitting.train(made, recipe, strategy=AUTO, seed=seed, cache=folder / "cache", work=folder)
            sheet.add(_measurements(name, seed, found, planted))
            say(f"{name}, seed {seed}: kept {found.manifest.strategy}, {found.seconds:.0f} s")
            shutil.rmtree(made)


def draw(name: str, folder: Path, seed: int, most: int | None = None) -> tuple[Path, ...]:
    """Write a task's images, at most so many a class; returns the copies that were planted."""
    if name == NEGATIVE:
        tasks.permuted_gratings(folder, images=min(240, 2 * (most or 240)), seed=seed)
    elif name == SIMPLE:
        tasks.colour_patches(folder, images=min(180, 3 * (most or 180)), seed=seed)
    else:
        few = most or 40
        return tasks.planted_duplicates(
            folder, train=min(120, 3 * few), held_out=min(45, 3 * few), planted=min(12, few), seed=seed
        )[1]
    return ()


def text(sheet: Sheet) -> list[str]:
    """What was said of each task, and whether it is what was asked."""
    lines = ["verdicts: what auto says of tasks built so that one thing is true of them"]
    for task in listed(sheet.rows, "task"):
        lines.append(f"  {task}: {ASKED[task]}")
        for row in sheet.rows:
            if row.task == task and row.metric == SAYS:
                lines.append(f"    {row.note}")
            elif row.task == task and row.metric == AS_ASKED:
                lines.append(f"    {'met   ' if row.value == 1 else 'MISSED'} seed {row.seed}: {row.note}")
    return lines


def _measurements(name: str, seed: int, found: Trained, planted: Sequence[Path]) -> list[Measurement]:
    manifest = found.manifest
    transfer = manifest.ladder.transfer if manifest.ladder else None
    says = list(transfer.says) if transfer else []
    says += [f"finding {finding.kind}: {finding.message}" for finding in manifest.findings]
    rows = [Measurement(name, AUTO, seed, SAYS, number, "line", note=line) for number, line in enumerate(says)]
    verdict = transfer.verdict if transfer else "not measured"
    if name == NEGATIVE:
        met, note = verdict == "negative", f"transfer: {verdict}"
    elif name == SIMPLE:
        met = bool(transfer and transfer.simple_suffices)
        note = f"a simple model {'suffices' if met else 'is not said to suffice'}; transfer: {verdict}"
    else:
        caught, others = duplicates(found, planted)
        met = caught == len(planted) and not others
        note = f"{caught} of {len(planted)} copies found, and {others} other images taken for copies"
    rows.append(Measurement(name, AUTO, seed, AS_ASKED, float(met), "share", note=note))
    return [*rows, *fitting.measurements(name, AUTO, seed, found)]


def duplicates(found: Trained, planted: Sequence[Path]) -> tuple[int, int]:
    """How many of the planted copies were left out of training as near-duplicates, and how many other images were."""
    left_out = {skip.location for skip in found.skipped if "near-duplicate" in skip.reason}
    return len(left_out & tasks.names(planted)), len(left_out - tasks.names(planted))
