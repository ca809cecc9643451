"""How fast Perennial answers: side by side, in one run, on one machine.

Everything, as `make bench-serving` does (about 45 minutes on two cores); a smoke run; a part of it:

    python -m benchmarks.serving --open-loop --soak 100000
    python -m benchmarks.serving --quick --no-write
    python -m benchmarks.serving --stacks limit,perennial,fastapi --images 640x480 --clients 32 --no-write

See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.serving import closed_loop, long_runs, material, plot, results, summary, wrk
from benchmarks.serving.closed_loop import LIMIT, Plan, Say
from benchmarks.serving.results import Measurement
from benchmarks.serving.stacks import CORES, LITSERVE, STACKS, Stack, litserve
from benchmarks.transfer import RESULTS, hardware

#: Those whose latency is measured in the open loop too.
OPEN_LOOP: Final = ("perennial", "fastapi")
NAMES: Final = (LIMIT, *STACKS, "litserve")
PLOT: Final = Path(__file__).parents[2] / "docs" / "serving.svg"
_PACKAGES: Final = ("bentoml", "openvino", "onnxruntime", "fastapi", "litserve", "torch", "pillow")


def main() -> None:
    chosen = _arguments()
    wrk.require()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that servers are ended on the way out
    if chosen.work is not None:
        _run(chosen, chosen.work.absolute())
    else:
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            _run(chosen, Path(folder))


def _run(chosen: argparse.Namespace, folder: Path) -> None:
    given = material.prepare(folder, chosen.images, chosen.weights)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    rows: list[Measurement] = []
    stacks = [STACKS[name] for name in chosen.stacks if name in STACKS]
    plan = Plan(stacks, chosen.images, chosen.clients, chosen.seconds, LIMIT in chosen.stacks)
    about = _about(given)
    if "litserve" in chosen.stacks:
        best, tried = closed_loop.best_litserve([litserve(*each) for each in LITSERVE], plan, given, say)
        rows += tried
        about["litserve workers x batch"] = best.removeprefix("litserve-")
        plan = Plan([*stacks, _named(best)], plan.images, plan.clients, plan.seconds, plan.with_limit)
    for repeat in range(chosen.repeat):
        say(f"round {repeat + 1} of {chosen.repeat}")
        rows += closed_loop.round_of(plan, given, repeat, say)
    if chosen.open_loop:
        rows += _open_loop(chosen, plan, given, rows, say)
    if chosen.soak:
        rows += long_runs.soak(STACKS["perennial"], plan.images[0], given, requests=chosen.soak, say=say)
    print(summary.text(rows, about))
    if chosen.write:
        results.write(rows, about, chosen.out)
        plot.draw(rows, about, chosen.plot)
        print(f"wrote {chosen.out} and {chosen.plot}")
    if results.invalid(rows):
        raise SystemExit("some answers were not good; those points are left out of the medians")


def _open_loop(
    chosen: argparse.Namespace, plan: Plan, given: material.Material, rows: list[Measurement], say: Say
) -> list[Measurement]:
    found, image = results.medians(rows), plan.images[0]
    rates = {stack.name: results.throughput(found, stack.name, image, max(plan.clients)) for stack in plan.stacks}
    stacks = [stack for stack in plan.stacks if stack.name in OPEN_LOOP and rates[stack.name] > 0]
    return [
        row
        for repeat in range(chosen.repeat)
        for row in long_runs.open_loop(stacks, rates, image, given, seconds=2 * chosen.seconds, repeat=repeat, say=say)
    ]


def _named(best: str) -> Stack:
    workers, batch = best.removeprefix("litserve-").split("x")
    return litserve(int(workers), int(batch), "litserve")


def _about(given: material.Material) -> dict[str, str]:
    return {
        "hardware": f"{summary.processor()}, {CORES} cores",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "precision of the limit and of Perennial": given.computes(),
        "photos": given.photos,
        "network": f"mobilenet_v3_small at {material.SIDE} x {material.SIDE}, weights {given.weights}",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def listed(known: Sequence[str]):  # type: ignore[no-untyped-def]
        def parse(text: str) -> list[str]:
            names = text.split(",")
            unknown = [name for name in names if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
            return names

        return parse

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--stacks", type=listed(NAMES), default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--images", type=listed(list(material.SIZES)), default=list(material.SIZES))
    parser.add_argument("--clients", type=numbers, default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=5, help="rounds; the summary shows medians")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--weights", default="builtin", help="as for `perennial train`; speed does not depend on it")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep photos and bundle there, and use them again")
    parser.add_argument("--quick", action="store_true", help="one round of a second a point")
    parser.add_argument("--open-loop", action="store_true", help="then latency at 50, 70 and 90 %% of the capacity")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS", help="then Perennial's memory over so many")
    parser.add_argument("--out", type=Path, default=RESULTS / f"serving-{hardware()}.csv", help="the CSV file")
    parser.add_argument("--plot", type=Path, default=PLOT, help="the picture, as SVG")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeat, chosen.seconds = 1, 1.0
    return chosen


if __name__ == "__main__":
    main()
