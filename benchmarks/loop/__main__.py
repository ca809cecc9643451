"""The loop on streams whose change points are known, beside simpler ways to keep a model fresh.

Streams: photos, then sketches of the same things, at once or as a ramp; a lens that goes soft; two classes that swap
names; two classes that no model knew; 200 windows of nothing at all. Five arms: never retrain; retrain every window on
all labels so far; retrain on every drift alarm, without a gate; as Perennial, but from the last model's weights;
Perennial. After every window a share of it is labelled, the same for all. `repeated` is five changes one after the
other, each followed by a retrain from the pretrained checkpoint and by one from the last model's weights.

  python -m benchmarks.loop --streams 'sketches at once,two classes swapped' --seeds 1
  python -m benchmarks.loop --streams repeated

It needs the shared photos and sketches (--test-data, or PERENNIAL_TEST_DATA). With --work what is done is kept, and a
run that was ended goes on after the last stream that it finished; arms can be run one after the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from benchmarks.loop import plot, repeated
from benchmarks.loop.arms import ARMS
from benchmarks.loop.play import Network, Played, Window, play
from benchmarks.loop.repeated import Repeated
from benchmarks.loop.streams import QUIET, STREAMS, Sizes, stream
from benchmarks.loop.summary import summary
from benchmarks.transfer import RESULTS, hardware

REPEATED: Final = "repeated"
_SAMPLED: Final = 20  # of the windows of the quiet stream `every window` retrains after one in so many


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    began = time.monotonic()
    sizes = Sizes(chosen.windows, chosen.quiet, chosen.window, chosen.labelled, chosen.train)

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    played: list[Played] = []
    windows: list[Window] = []
    series: list[Repeated] = []
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as temporary:
        folder = (chosen.work or Path(temporary)).absolute()
        os.environ["BENTOML_HOME"] = str(folder / "bentoml")  # before anybody imports it
        for seed in range(chosen.seeds):
            for name in chosen.streams:
                arms = [REPEATED] if name == REPEATED else chosen.arms
                missing = [arm for arm in arms if not _done(folder, name, seed, arm).exists()]
                if missing:
                    _play(chosen, name, seed, missing, sizes, folder, say)
                for arm in arms:
                    kept = json.loads(_done(folder, name, seed, arm).read_text("utf-8"))
                    played += [Played(**row) for row in kept.get("played", ())]
                    windows += [Window(**row) for row in kept.get("windows", ())]
                    series += [Repeated(**row) for row in kept.get("repeated", ())]
    print(*summary(played), *repeated.summary(series), sep="\n")
    if chosen.write:
        out = chosen.out
        for part, rows in (("", played), ("-windows", windows), ("-repeated", series)):
            if rows:
                _write(rows, out / f"loop{part}-{hardware()}.csv")
        if windows:
            plot.draw(windows, {name: stream(name, sizes) for name in STREAMS}, chosen.plots / "loop.svg")


def _play(
    chosen: argparse.Namespace, name: str, seed: int, arms: Sequence[str], sizes: Sizes, folder: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Send a stream to these arms, and keep what each came to."""
    weights = chosen.weights or str((chosen.test_data / "weights" / "mobilenet_v2_imagenet.pth").absolute())
    network = Network(chosen.backbone, weights, chosen.image_size)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="homes-") as homes:
        if name == REPEATED:
            rows = repeated.play(chosen.test_data, network, sizes, seed=seed, folder=Path(homes), say=say)
            _keep(_done(folder, name, seed, REPEATED), {"repeated": rows})
            return
        played, windows = play(
            stream(name, sizes), arms, chosen.test_data, network, sizes, seed=seed, folder=Path(homes),
            every=min(_SAMPLED, sizes.quiet) if name == QUIET else 1, say=say,
        )  # fmt: skip
    for arm in arms:
        mine = {"played": [row for row in played if row.arm == arm]}
        _keep(_done(folder, name, seed, arm), mine | {"windows": [row for row in windows if row.arm == arm]})


def _done(folder: Path, name: str, seed: int, arm: str) -> Path:
    """Where what one arm came to on one stream is kept."""
    return folder / "done" / f"{name}-{seed}-{arm}.json".replace(" ", "-")


def _keep(path: Path, found: Mapping[str, Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({what: [asdict(row) for row in rows] for what, rows in found.items()}), "utf-8")
    unfinished.rename(path)


def _write(rows: Sequence[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    more = [name for name in ("compute_seconds", "bad") if hasattr(rows[0], name)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [*(field.name for field in fields(rows[0])), *more]
        writer.writerow(names)
        writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    print(f"wrote {path}")


def _cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


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
        prog="python -m benchmarks.loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data, sizes, every = Path(os.environ.get("PERENNIAL_TEST_DATA", "../shared/data")), Sizes(), [*STREAMS, REPEATED]
    parser.add_argument("--streams", type=_some_of(every), default=every, help=f"of {', '.join(every)}")
    parser.add_argument("--arms", type=_some_of(list(ARMS)), default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=1, help="how often each, with other draws of the images")
    parser.add_argument("--windows", type=int, default=sizes.windows, help="of a stream with change")
    parser.add_argument("--quiet", type=int, default=sizes.quiet, help="windows of the stream without one")
    parser.add_argument("--window", type=int, default=sizes.window, help="images in a window")
    parser.add_argument("--labelled", type=float, default=sizes.labelled, help="share of them that is labelled")
    parser.add_argument("--train", type=int, default=sizes.learnt, help="original images")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="", help="the shared ImageNet ones unless given")
    parser.add_argument("--image-size", type=int, default=96, help="a side, in pixels")
    parser.add_argument("--test-data", type=Path, default=data, metavar="FOLDER")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep what is done there, and go on from it")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for the CSV files")
    parser.add_argument("--plots", type=Path, default=RESULTS.parents[1] / "docs", metavar="FOLDER")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
