"""How well drift is told from no drift, and its cause named, beside five other methods on the same windows.

  detection    the share of windows that alarm, in the form of Failing Loudly: its shifts, its deltas, windows of 50 to
               1,000 rows, against as many reference rows and against all others; with a column of no shift at all.
  false_alarms windows of 200 to 5,000 rows in which nothing changed, labels and all, beside the rate that is stated.
  attribution  windows in which one thing is known to have changed, and the verdict that is given.
  delay        windows until an alarm, by how many images change in the end and how fast they come to it.
  accuracy     windows whose accuracy is known, and what is estimated without labels: by method and severity.
  cost         seconds and memory of a check from the shell, by the rows of its window and of the ledger.

  python -m benchmarks.drift --worlds digits
  python -m benchmarks.drift --only attribution --seeds 20

Digits are scikit-learn's; photos, sketches and steel are the shared ones (--test-data, or PERENNIAL_TEST_DATA); without
those the digits alone are measured. Nothing in Perennial was chosen by looking at steel.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final

from benchmarks.drift import accuracy, accuracy_plot, attribution, cost, delay, detection, false_alarms, plot
from benchmarks.drift.methods import METHODS
from benchmarks.drift.shifts import CAMERA, FAILING_LOUDLY, STRENGTHS, Change
from benchmarks.drift.worlds import World, build, digits_on_disk, photos_on_disk, steel_on_disk
from benchmarks.transfer import RESULTS, hardware

PARTS: Final = ("detection", "false_alarms", "attribution", "delay", "accuracy", "cost")
WORLDS: Final = ("digits", "photos", "steel")
_ESTIMATES: Final = 3  # windows of each change, strength and share
_DELAYS: Final = 5  # streams of each kind, of up to thirty windows each

#: What is printed in the end.
_SUMMARIES: Final[dict[str, Callable[[list[Any]], list[str]]]] = {
    "detection": detection.summary, "false_alarms": false_alarms.summary, "attribution": attribution.summary,
    "delay": delay.summary, "accuracy": accuracy.summary,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-drift-") as temporary:
        folder = (chosen.work or Path(temporary)).absolute()
        began = time.monotonic()

        def say(line: str) -> None:
            print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

        found: dict[str, list[Any]] = {part: [] for part in PARTS}

        def add(part: str, rows: Sequence[Any]) -> None:
            """What was measured is on disk before the next part begins."""
            found[part] += rows
            if rows and chosen.write:
                _write(found[part], chosen.out / f"drift-{part.replace('_', '-')}-{hardware()}.csv")

        if "cost" in chosen.only:
            add("cost", cost.measure(folder / "cost", runs=chosen.runs, say=say))
        for name in chosen.worlds if set(chosen.only) - {"cost"} else ():
            world = _world(name, chosen.test_data, folder, STRENGTHS if "accuracy" in chosen.only else {})
            say(f"{name}: {len(world)} images that the model has not seen")
            if "attribution" in chosen.only:
                known = [
                    each for each in attribution.RIGHT if "sketches" not in each or attribution.SKETCHES in world.scores
                ]
                add("attribution", attribution.measure(
                    world, rows=chosen.rows, scenarios=known, seeds=chosen.seeds, jobs=chosen.jobs, say=say
                ))  # fmt: skip
            if "false_alarms" in chosen.only:
                sizes = false_alarms.SIZES
                add("false_alarms", false_alarms.measure(
                    world, sizes=sizes, repeats=chosen.clean, jobs=chosen.jobs, say=say
                ))  # fmt: skip
            if "accuracy" in chosen.only:
                seeds = min(_ESTIMATES, chosen.seeds)
                add("accuracy", accuracy.measure(world, rows=chosen.rows, seeds=seeds, jobs=chosen.jobs, say=say))
            if "detection" in chosen.only:
                add("detection", detection.measure(
                    world, sizes=chosen.sizes, references=chosen.references, shifts=chosen.shifts, seeds=chosen.seeds,
                    clean=chosen.clean, methods=chosen.methods, jobs=chosen.jobs, say=say,
                ))  # fmt: skip
            if "delay" in chosen.only:
                seeds = min(_DELAYS, chosen.seeds)
                add("delay", delay.measure(world, rows=chosen.rows, seeds=seeds, jobs=chosen.jobs, say=say))
        for part, summary in _SUMMARIES.items():
            print(*summary(found[part]), sep="\n", end="\n" if found[part] else "")
        if chosen.write:
            if found["accuracy"]:
                accuracy_plot.draw(found["accuracy"], chosen.plots / "drift-accuracy.svg")
            plot.draw(chosen.out, chosen.plots / "drift.svg")


def _world(name: str, data: Path, folder: Path, more: Mapping[str, Change]) -> World:
    changes = {**FAILING_LOUDLY, **CAMERA, **more}
    if name == "digits":
        return build(
            name, *digits_on_disk(folder / "digits"), changes, {}, backbone="mobilenet_v3_small", weights="builtin",
            image_size=64, train=400, folder=folder,
        )  # fmt: skip
    others = {attribution.SKETCHES: photos_on_disk(data, "sketch")} if name == "photos" else {}
    images = photos_on_disk(data, "photo") if name == "photos" else steel_on_disk(data)
    return build(
        name, *images, changes, others, backbone="mobilenet_v2",
        weights=str(data / "weights" / "mobilenet_v2_imagenet.pth"), image_size=224, train=300, folder=folder,
    )  # fmt: skip


def _write(rows: Sequence[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(rows[0])])
        writer.writerows(astuple(row) for row in rows)
    print(f"wrote {path}")


def _some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(known)}")
        return names

    return parse


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("PERENNIAL_TEST_DATA", "../shared/data"))
    references = (detection.EQUAL, detection.FULL)
    parser.add_argument("--only", type=_some_of(PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--worlds", type=_some_of(WORLDS), help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--methods", type=_some_of(list(METHODS)), default=list(METHODS))
    parser.add_argument("--shifts", type=_some_of(list(detection.SHIFTS)), default=list(detection.SHIFTS))
    parser.add_argument("--sizes", type=lambda text: [int(each) for each in text.split(",")], default=detection.SIZES)
    parser.add_argument("--references", type=_some_of(references), default=list(references))
    parser.add_argument("--seeds", type=int, default=20, help="windows of each shift")
    parser.add_argument("--clean", type=int, default=200, help="windows without a shift")
    parser.add_argument("--rows", type=int, default=500, help="of a window to be named or estimated")
    parser.add_argument("--runs", type=int, default=5, help="of a check, whose cost is the median")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--test-data", type=Path, default=data, metavar="FOLDER")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the models and features there")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for the CSV files")
    parser.add_argument("--plots", type=Path, default=RESULTS.parents[1] / "docs", metavar="FOLDER")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args(arguments)
    if chosen.worlds is None:
        chosen.worlds = [name for name in WORLDS if name == "digits" or chosen.test_data.is_dir()]
    return chosen


if __name__ == "__main__":
    main()
