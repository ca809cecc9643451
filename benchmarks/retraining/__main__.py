"""What a retrain costs, and what it costs the service beside it.

    python -m benchmarks.retraining                  # three rounds, about ten minutes; needs wrk and the shared images
    python -m benchmarks.retraining --rounds 1 --no-write --work /tmp/retraining

A model of PACS photos is live (MobileNetV2, a probe), and 300 labelled sketches have come: 1,670 + 300 images.
Each round runs `perennial retrain` with nothing beside it; then the service alone, the service and a retrain at once
(started in a session of its own, as `perennial watch` does), and the service alone again, under as much load as it
takes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.resilience.server import Figure, say, serving, write
from benchmarks.retraining.world import World, perennial, prepare
from benchmarks.serving import wrk
from benchmarks.serving.material import Bodies, environment
from benchmarks.transfer import RESULTS, hardware

_CLIENTS: Final = 8
_WARM_SECONDS: Final = 3.0
_PIECE_SECONDS: Final = 3.0  # of load, again and again while the retrain runs
_ARGUMENTS: Final = ("retrain", "--reason", "the benchmark", "--json")


@dataclass(frozen=True)
class Round:
    """Seconds of a retrain alone and beside the load, processor seconds of the one alone, and what the service did."""

    alone: float
    processor: float
    beside: float
    without: Sequence[wrk.Load]
    during: Sequence[wrk.Load]

    @property
    def throughput(self) -> float:
        """The service's answers a second beside a retrain, of those without one."""
        return _rate(self.during) / _rate(self.without)

    @property
    def p99(self) -> float:
        return _p99(self.during) / _p99(self.without)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retraining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="the figures are medians")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load before and after each retrain")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the home there, and use it again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"retraining-{hardware()}.csv")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args()
    wrk.require()
    with tempfile.TemporaryDirectory(prefix="bench-retraining-") as folder:
        world = prepare(chosen.work or Path(folder))
        rounds = [_round(world, chosen.seconds) for _ in range(chosen.rounds)]
    figures = _figures(rounds)
    for figure in figures:
        say(f"{figure.metric:<52} {figure.value:>10.3f} {figure.unit}")
    if chosen.write:
        write(figures, chosen.out)


def _round(world: World, seconds: float) -> Round:
    world.reset()
    used, began = _processor_seconds(), time.monotonic()
    found = perennial(world.home, *_ARGUMENTS)
    alone, used = time.monotonic() - began, _processor_seconds() - used
    say(f"a retrain with nothing beside it: {alone:.1f} s, {found['outcome']}")

    world.reset()
    bodies = world.bodies()
    with serving(world.home) as server:
        url = f"{server.url}/v1/predict"
        wrk.run(url, bodies, clients=_CLIENTS, seconds=_WARM_SECONDS)
        before = wrk.run(url, bodies, clients=_CLIENTS, seconds=seconds)
        beside, during = _retrain_under_load(world, url, bodies)
        after = wrk.run(url, bodies, clients=_CLIENTS, seconds=seconds)
    found_round = Round(alone, used, beside, (before, after), during)
    say(f"beside the service: {beside:.1f} s; the service keeps {found_round.throughput:.2f} of its throughput")
    return found_round


def _retrain_under_load(world: World, url: str, bodies: Bodies) -> tuple[float, list[wrk.Load]]:
    """Its seconds, and the pieces of load that lie within it."""
    pieces: list[wrk.Load] = []
    ended: list[float] = []
    with (world.folder / "retrain.log").open("wb") as log:
        began = time.monotonic()
        retrain = subprocess.Popen(
            [sys.executable, "-m", "commands.main", *_ARGUMENTS],
            env=environment(world.home), cwd=world.home, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

        def wait() -> None:
            retrain.wait()
            ended.append(time.monotonic())

        waiting = threading.Thread(target=wait)
        waiting.start()
        while True:
            piece = wrk.run(url, bodies, clients=_CLIENTS, seconds=_PIECE_SECONDS)
            if ended:
                break
            pieces.append(piece)
        waiting.join()
    if retrain.returncode not in (0, 11) or not pieces:
        raise SystemExit(f"the retrain failed:\n{(world.folder / 'retrain.log').read_text('utf-8', 'replace')}")
    return ended[0] - began, pieces


def _figures(rounds: Sequence[Round]) -> list[Figure]:
    def median(name: str, what: Callable[[Round], float], unit: str) -> Figure:
        return Figure("retraining", name, float(np.median([what(each) for each in rounds])), unit)

    every = [load for each in rounds for load in (*each.without, *each.during)]
    return [
        Figure("retraining", "rounds", len(rounds), "rounds"),
        median("retrain, nothing beside it", lambda each: each.alone, "s"),
        median("retrain, nothing beside it: processor", lambda each: each.processor, "s"),
        median("retrain, beside the loaded service", lambda each: each.beside, "s"),
        median("service alone", lambda each: _rate(each.without), "answers/s"),
        median("service beside the retrain", lambda each: _rate(each.during), "answers/s"),
        median("service beside the retrain, of it alone", lambda each: each.throughput, "share"),
        Figure("retraining", "the lowest of the rounds", min(each.throughput for each in rounds), "share"),
        median("service alone: p99", lambda each: _p99(each.without), "ms"),
        median("service beside the retrain: p99", lambda each: _p99(each.during), "ms"),
        median("p99 beside the retrain, of it alone", lambda each: each.p99, "times"),
        Figure("retraining", "answers that were errors", sum(load.errors for load in every), "requests"),
    ]


def _rate(loads: Sequence[wrk.Load]) -> float:
    return sum(load.requests for load in loads) / sum(load.seconds for load in loads)


def _p99(loads: Sequence[wrk.Load]) -> float:
    return float(np.median([load.p99 for load in loads]))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
