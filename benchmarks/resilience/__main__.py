"""What becomes of acknowledged predictions when things break, and of good answers when there are too many.

    python -m benchmarks.resilience                        # everything, about fifteen minutes
    python -m benchmarks.resilience --only kills --kills 5 --no-write

- kills: every process of the server is SIGKILLed under load, again and again on the same home; then each prediction
  that was answered with 200 is looked for in the ledger.
- database: a PostgreSQL server is stopped for a while under load.
- disk: the storage of captured images is a full disk (a small tmpfs; needs the right to mount one).
- overload: requests arrive at four times the measured capacity, in the open loop.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.resilience.faults import database, disk, kills
from benchmarks.resilience.overload import overload
from benchmarks.resilience.server import IMAGE, Figure, say, write
from benchmarks.serving import material
from benchmarks.transfer import RESULTS, hardware

EXPERIMENTS: Final = ("kills", "database", "disk", "overload")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resilience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be given several times")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the outage and of each overload")
    parser.add_argument("--rounds", type=int, default=5, help="of the overload; the figures are medians")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep photos and bundle there, and use them again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"resilience-{hardware()}.csv")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-resilience-") as folder:
        given = material.prepare((chosen.work or Path(folder)).absolute(), [IMAGE], "builtin")
        every: dict[str, Callable[[], list[Figure]]] = {
            "kills": lambda: kills(given, chosen.kills),
            "database": lambda: database(given, chosen.seconds),
            "disk": lambda: disk(given, min(chosen.seconds, 10.0)),
            "overload": lambda: overload(given, chosen.seconds, chosen.rounds),
        }
        figures = []
        for name in chosen.only or EXPERIMENTS:
            found = every[name]()
            for figure in found:
                say(f"{figure.experiment:<10} {figure.metric:<40} {figure.value:>12.3f} {figure.unit}")
            figures += found
    if chosen.write:
        write(figures, chosen.out)


if __name__ == "__main__":
    main()
