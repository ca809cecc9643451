"""Training, measured on real data, with peers in the same run.

Four parts; `make bench-training` runs them all, one after the other (hours on two cores; see each):

  time      ants and bees from the shell, to the same accuracy: `perennial train` (linear_probe, then auto) against the
            PyTorch tutorial's frozen recipe (25 epochs) and fastai's fine_tune, each in a process of its own. --repeat
            rounds. The peers' seconds to the accuracy of Perennial's probe, and the ratio.
  few       10 and 50 images a class of steel defects, PACS photos, 1,000 photos with 300 sketches: accuracy of auto and
            of each rung by name, mean of --seeds draws, 95 % t-interval.
  ladder    ten tasks, three seeds: is what auto keeps within a point of the best rung on test images? The longest:
            narrow it with --tasks and --methods, and let it go on with --resume.
  verdicts  three tasks that are made here, in which one thing is true each: transfer hurts, a simple baseline suffices,
            copies of held-out images are among the training ones. What auto says of them.

  python -m benchmarks.training --quick                                  a few images of each, one epoch: does it run?
  python -m benchmarks.training --only time --peer-python PYTHON         a Python that has torch and fastai
  python -m benchmarks.training --only time --methods perennial-linear_probe,tutorial --repeat 1
  python -m benchmarks.training --only few --tasks steel-10,steel-50 --methods auto
  python -m benchmarks.training --only ladder --methods linear_probe,auto,partial --resume
  python -m benchmarks.training --only verdicts

Rows are written as they come, to benchmarks/results/training-PART-HARDWARE.csv: after Ctrl-C, --resume goes on (on
another machine as well, but for part time: its file then names both). A part run without --resume is begun anew. The
picture is docs/training.svg.

It needs the real images and weights (--test-data, or PERENNIAL_TEST_DATA). fastai is not among this project's
development packages: pip install 'perennial[bench-training]', or --peer-python; without it that contender is left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.serving.summary import processor
from benchmarks.training import draws, few_images, ladder, plot, time_to_accuracy, verdicts
from benchmarks.training.fitting import Recipe
from benchmarks.training.results import HARDWARE, Measurement, Sheet, read
from benchmarks.transfer import RESULTS

PARTS: Final = ("time", "few", "ladder", "verdicts")
PLOT: Final = Path(__file__).parents[2] / "docs" / "training.svg"
_SEEDS: Final = {"few": 5, "ladder": 3, "verdicts": 1}
_METHODS: Final = {"time": time_to_accuracy.METHODS, "few": few_images.METHODS, "ladder": ladder.METHODS}
_TASKS: Final = {"few": few_images.TASKS, "ladder": ladder.TASKS, "verdicts": verdicts.TASKS}
#: Beyond each part's own.
_KNOWN_TASKS: Final = (*draws.DRAWS, *verdicts.TASKS)
_PACKAGES: Final = ("torch", "torchvision", "scikit-learn", "openvino", "numpy", "pillow")
_QUICK_IMAGES: Final = 10

Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    if chosen.work is not None:
        _run(chosen, chosen.work.absolute())
    else:
        with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
            _run(chosen, Path(folder))


def _run(chosen: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data, weights = chosen.test_data.absolute(), (chosen.weights or chosen.test_data / draws.WEIGHTS).absolute()
    for path in (data, weights):
        if not path.exists():
            raise SystemExit(f"there is no {path}; set PERENNIAL_TEST_DATA or give --test-data and --weights")
    recipe = Recipe(weights, chosen.budget, chosen.most)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    sheets: dict[str, Sheet] = {}
    for part in chosen.only:
        path = plot.file_of(chosen.out, part) if chosen.write else None
        about = _about(chosen, weights)
        sheet = sheets[part] = Sheet(path, about, resume=chosen.resume, elsewhere=part != "time")
        say(f"part {part}" + (f", {len(sheet.rows)} rows are there already" if sheet.rows else ""))
        _PART[part](sheet, chosen, data, recipe, folder, say)
        print("\n".join(["", *_TEXT[part](sheet), ""]), flush=True)
    if chosen.write:
        plot.draw_from(chosen.out, chosen.plot)
        print(f"wrote {', '.join(str(sheet.path) for sheet in sheets.values())} and {chosen.plot}")


def _time(sheet: Sheet, chosen: argparse.Namespace, data: Path, recipe: Recipe, folder: Path, say: Say) -> None:
    photos = draws.copy_ants_and_bees(data, folder, chosen.most)
    race = time_to_accuracy.Race(
        photos, recipe.weights, folder, chosen.peer_python, chosen.epochs, tuple(chosen.fastai_epochs)
    )
    time_to_accuracy.measure(sheet, race, _methods(chosen, "time"), chosen.repeat, say)


def _few(sheet: Sheet, chosen: argparse.Namespace, data: Path, recipe: Recipe, folder: Path, say: Say) -> None:
    few_images.measure(
        sheet, data, recipe, folder, tasks=_tasks(chosen, "few"), methods=_methods(chosen, "few"),
        seeds=_seeds(chosen, "few"), say=say,
    )  # fmt: skip


def _ladder(sheet: Sheet, chosen: argparse.Namespace, data: Path, recipe: Recipe, folder: Path, say: Say) -> None:
    ladder.measure(
        sheet, data, recipe, folder, tasks=_tasks(chosen, "ladder"), methods=_methods(chosen, "ladder"),
        seeds=_seeds(chosen, "ladder"), reuse=chosen.reuse_auto, known=_measured_of_few(sheet, chosen), say=say,
    )  # fmt: skip


def _measured_of_few(sheet: Sheet, chosen: argparse.Namespace) -> list[Measurement]:
    """The rows of part `few` beside it, where they were measured with the same packages."""
    path = plot.file_of(chosen.out, "few")
    if not (chosen.write and chosen.reuse_auto and path.is_file()):
        return []
    rows, about = read(path)
    return rows if about | {HARDWARE: ""} == sheet.about | {HARDWARE: ""} else []


def _verdicts(sheet: Sheet, chosen: argparse.Namespace, data: Path, recipe: Recipe, folder: Path, say: Say) -> None:
    names, seeds = _tasks(chosen, "verdicts"), _seeds(chosen, "verdicts")
    verdicts.measure(sheet, recipe, folder, names=names, seeds=seeds, say=say)


_PART: Final = {"time": _time, "few": _few, "ladder": _ladder, "verdicts": _verdicts}
_TEXT: Final = {
    "time": time_to_accuracy.text, "few": few_images.text, "ladder": ladder.text, "verdicts": verdicts.text,
}  # fmt: skip


def _methods(chosen: argparse.Namespace, part: str) -> list[str]:
    return [name for name in chosen.methods if name in _METHODS[part]] if chosen.methods else list(_METHODS[part])


def _tasks(chosen: argparse.Namespace, part: str) -> list[str]:
    known = verdicts.TASKS if part == "verdicts" else tuple(draws.DRAWS)
    return [name for name in chosen.tasks if name in known] if chosen.tasks else list(_TASKS[part])


def _seeds(chosen: argparse.Namespace, part: str) -> int:
    return chosen.seeds or _SEEDS[part]


def _about(chosen: argparse.Namespace, weights: Path) -> dict[str, str]:
    about = {
        HARDWARE: f"{processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "network": f"{draws.BACKBONE}, weights {weights.name}",
        "budget of auto": f"{chosen.budget:g} s",
    }
    return about | ({"images": f"at most {chosen.most} a class and split"} if chosen.most else {})


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            names = text.split(",")
            unknown = [name for name in names if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
            return names

        return parse

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    methods = list(dict.fromkeys(name for names in _METHODS.values() for name in names))
    parser.add_argument("--only", type=some_of(PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tasks", type=some_of(_KNOWN_TASKS), help=f"of {', '.join(_KNOWN_TASKS)}")
    parser.add_argument("--methods", type=some_of(methods), help=f"of {', '.join(methods)}")
    parser.add_argument("--seeds", type=int, help="draws of few (5), seeds of ladder (3) and verdicts (1)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of time; medians are shown")
    parser.add_argument(
        "--budget", type=float, default=300.0, metavar="SECONDS", help="that auto may spend on choosing"
    )
    parser.add_argument("--epochs", type=int, default=25, help="of the tutorial")
    parser.add_argument("--fastai-epochs", type=numbers, default=[4], metavar="N[,N]", help="what fine_tune is given")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="runs the peers")
    parser.add_argument(
        "--reuse-auto",
        action="store_true",
        help="ladder: what auto kept is not trained again by name, nor what part few measured of the same draws",
    )
    parser.add_argument("--most", type=int, metavar="IMAGES", help="use so many a class and split: to try it out")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 10 images; written only with --out")
    parser.add_argument("--resume", action="store_true", help="go on with the rows that are in the CSV files")
    parser.add_argument("--test-data", type=Path, default=draws.TEST_DATA, metavar="FOLDER")
    parser.add_argument(
        "--weights", type=Path, metavar="PATH", help=f"of {draws.BACKBONE}; else those of the test data"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep draws and the ladder's feature cache there")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for the CSV files")
    parser.add_argument(
        "--plot", type=Path, help="the picture, as SVG; docs/training.svg, or beside the CSV files where --out is given"
    )
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args(arguments)
    if chosen.plot is None:
        chosen.plot = PLOT if chosen.out == RESULTS else chosen.out / PLOT.name
    if chosen.quick:
        chosen.repeat = chosen.seeds = chosen.epochs = 1
        chosen.fastai_epochs, chosen.most = [1], chosen.most or _QUICK_IMAGES
        chosen.write = chosen.write and chosen.out != RESULTS
    return chosen


if __name__ == "__main__":
    main()
