"""Requests at four times the measured capacity, in the open loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from benchmarks.resilience.server import IMAGE, Figure, say, serving
from benchmarks.serving import wrk
from benchmarks.serving.material import Bodies, Material, environment, open_home
from benchmarks.serving.open_loop import arrivals
from perennial.settings_sections import ServeSettings

# More than the queue takes. wrk looks through all its resting clients at every event: a thousand of them would cost a
# quarter of a core.
_RESTING_CLIENTS: Final = 128
_LOOKS_A_SECOND: Final = 10.0


def overload(given: Material, seconds: float, rounds: int, times: float = 4.0) -> list[Figure]:
    """`times` as many requests as the capacity, which is what 32 waiting clients get, measured before and after. The
    load is wrk's, with many clients that rest in between; a second, thin stream of requests in the open loop looks at
    the answers. Shares and times are medians of the rounds; counts are sums."""
    most = ServeSettings().max_queue
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as folder:
        home = Path(folder)
        open_home(home, given.bundle)
        with serving(home, PERENNIAL_SERVE__CAPTURE="0") as server:
            bodies = given.bodies(IMAGE)
            url = f"{server.url}/v1/predict"
            wrk.run(url, bodies, clients=32, seconds=3)
            before = wrk.run(url, bodies, clients=32, seconds=10).rate
            every = []
            for number in range(rounds):
                every.append(_overload_once(url, bodies, home, seconds, times, before))
                before = every[-1].after
                say(f"overload {number + 1} of {rounds}: {every[-1].share:.2f} of {every[-1].capacity:.0f}/s")
    looked = [sum(counts) for counts in zip(*(each.looked for each in every), strict=True)]

    def median(what: Callable[[_Overload], float]) -> float:
        return float(np.median([what(each) for each in every]))

    return [
        Figure("overload", "rounds", rounds, "rounds"),
        Figure("overload", "capacity", median(lambda each: each.capacity), "answers/s"),
        Figure("overload", "offered", median(lambda each: each.load.rate), "requests/s"),
        Figure("overload", "good answers", median(lambda each: each.good), "answers/s"),
        Figure("overload", "good answers of the capacity", median(lambda each: each.share), "share"),
        Figure("overload", "good answers of the capacity, lowest", min(each.share for each in every), "share"),
        Figure("overload", "good answers of the capacity, highest", max(each.share for each in every), "share"),
        Figure("overload", "refused", sum(each.load.refused for each in every), "requests"),
        Figure("overload", "broken or timed out", sum(each.broken for each in every), "requests"),
        Figure("overload", "looked at: good", looked[0], "answers"),
        Figure("overload", "looked at: 503 with Retry-After", looked[1], "answers"),
        Figure("overload", "looked at: 503 without it", looked[2], "answers"),
        Figure("overload", "looked at: other answers", looked[3], "answers"),
        Figure("overload", "looked at: no answer", looked[4], "requests"),
        Figure("overload", "looked at: accepted p50", median(lambda each: each.p50), "s"),
        Figure("overload", "looked at: accepted p99", median(lambda each: each.p99), "s"),
        Figure("overload", "the queue's bound: max_queue / good answers", median(lambda each: most / each.good), "s"),
    ]


@dataclass(frozen=True)
class _Overload:
    """A round. `looked`: see `look`."""

    load: wrk.Load
    before: float
    after: float
    looked: tuple[float, ...]
    p50: float
    p99: float

    @property
    def capacity(self) -> float:
        return (self.before + self.after) / 2  # a machine that is not alone changes its speed within a minute

    @property
    def good(self) -> float:
        return (self.load.requests - self.load.refused) / self.load.seconds

    @property
    def broken(self) -> int:
        return self.load.errors - self.load.refused

    @property
    def share(self) -> float:
        return self.good / self.capacity


def _overload_once(url: str, bodies: Bodies, home: Path, seconds: float, times: float, before: float) -> _Overload:
    program = [sys.executable, "-m", "benchmarks.resilience.overload", url, str(bodies.listing), str(seconds - 2)]
    looking = subprocess.Popen(program, env=environment(home), stdout=subprocess.PIPE, text=True)
    # Those that are accepted wait in the queue; the others make up the rate.
    load = wrk.run(
        url, bodies, clients=ServeSettings().max_queue + _RESTING_CLIENTS, seconds=seconds,
        pause=1000 * _RESTING_CLIENTS / (times * before),
    )  # fmt: skip
    said, _ = looking.communicate(timeout=120)
    *looked, p50, p99 = map(float, said.split())
    after = wrk.run(url, bodies, clients=32, seconds=10).rate
    return _Overload(load, before, after, tuple(looked), p50, p99)


def look(url: str, listing: Path, seconds: float) -> None:
    """A process of its own. Prints: good, refused well, refused without Retry-After, other, without answer, and the
    median and 99th percentile of the good ones' seconds."""
    bodies = Bodies(listing, "image/jpeg").read()
    times = arrivals(_LOOKS_A_SECOND, seconds, 0)
    found: list[tuple[int, bool, float]] = []

    async def one(http: httpx.AsyncClient, at: float, body: bytes) -> None:
        await asyncio.sleep(at)
        began = time.perf_counter()
        answer = await http.post(url, content=body)
        found.append((answer.status_code, "retry-after" in answer.headers, time.perf_counter() - began))

    async def load() -> None:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
            sent = (one(http, at, bodies[number % len(bodies)]) for number, at in enumerate(times))
            await asyncio.gather(*sent, return_exceptions=True)

    asyncio.run(load())
    good = np.array([taken for status, _, taken in found if status == 200] or [np.nan])
    refused = sum(status == 503 and retry for status, retry, _ in found)
    unwell = sum(status == 503 and not retry for status, retry, _ in found)
    answered = sum(status == 200 for status, _, _ in found)
    other = len(found) - answered - refused - unwell
    print(answered, refused, unwell, other, len(times) - len(found), np.quantile(good, 0.5), np.quantile(good, 0.99))


if __name__ == "__main__":
    look(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
