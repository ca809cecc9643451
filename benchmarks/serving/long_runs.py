"""What takes more than a few seconds a point: latency under open-loop load, and memory over many requests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from benchmarks.serving import wrk
from benchmarks.serving.closed_loop import Say
from benchmarks.serving.material import Bodies, Material, environment
from benchmarks.serving.results import Measurement
from benchmarks.serving.stacks import CORES, Server, Stack, serving

LOADS: Final = (50, 70, 90)  # per cent of the capacity
_WARM_UP: Final = 2.0
_SOAK_CLIENTS: Final = 32
_SOAK_STEP: Final = 5.0  # seconds of load between two looks at the memory
# Caches and thread pools fill at first; growth is what goes on after that.
_SOAK_SETTLED: Final = 0.2


def open_loop(
    stacks: Sequence[Stack],
    capacities: Mapping[str, float],
    image: str,
    material: Material,
    *,
    seconds: float,
    repeat: int,
    say: Say,
) -> list[Measurement]:
    """Latency at shares of each stack's own capacity (requests a second by its name), one round."""
    rows = []
    for stack in stacks if repeat % 2 == 0 else list(reversed(stacks)):
        with serving(stack, material) as server:
            bodies = material.bodies(image, stack.form_field)
            wrk.run(server.url, bodies, clients=CORES, seconds=_WARM_UP)
            server.settle()
            for share in LOADS:
                rate = capacities[stack.name] * share / 100
                said = _send(server, bodies, material, rate=rate, seconds=seconds, seed=100 * repeat + share)
                server.settle()
                rows += _measured(stack.name, image, share, rate, said, repeat)
                say(
                    f"{stack.name:<18} {image:<10} open loop {share} % ({rate:.0f}/s)  p50 {said['p50']:.1f} "
                    f"p99 {said['p99']:.1f} p99.9 {said['p999']:.1f} ms"
                    + (f"  {said['errors']:.0f} ERRORS" if said["errors"] else "")
                )
    return rows


def soak(stack: Stack, image: str, material: Material, *, requests: int, say: Say) -> list[Measurement]:
    """Memory of the whole server over that many requests: a row a look, and the slope of a straight line."""
    looks: list[tuple[int, float]] = []
    rows = []
    with serving(stack, material) as server:
        bodies = material.bodies(image, stack.form_field)
        answered = errors = 0
        while answered < requests:
            load = wrk.run(server.url, bodies, clients=_SOAK_CLIENTS, seconds=_SOAK_STEP)
            if not load.requests:
                raise SystemExit(f"{stack.name} stopped answering after {answered:,} requests:\n{server.log()}")
            answered += load.requests
            errors += load.errors
            looks.append((answered, sum(server.memory())))
            rows.append(
                Measurement(stack.name, image, "soak", _SOAK_CLIENTS, "memory_total", looks[-1][1], "MB", len(looks))
            )
    growth = slope(looks)
    figures = (("memory_slope", growth, "MB/100k requests"), ("errors", float(errors), "requests"))
    rows += [
        Measurement(stack.name, image, "soak", _SOAK_CLIENTS, name, value, unit, 0) for name, value, unit in figures
    ]
    say(
        f"{stack.name:<18} {image:<10} {answered:,} requests: {looks[0][1]:.0f} to {looks[-1][1]:.0f} MB, "
        f"{growth:+.1f} MB each 100,000"
    )
    return rows


def slope(looks: Sequence[tuple[int, float]]) -> float:
    """MB each 100,000 requests: least squares over (requests so far, MB), without the first fifth of the requests."""
    settled = [look for look in looks if look[0] >= looks[-1][0] * _SOAK_SETTLED]
    if len(settled) < 2:
        return float("nan")
    counts, sizes = np.array(settled).T
    return float(np.polyfit(counts / 100_000, sizes, 1)[0])


def _send(
    server: Server, bodies: Bodies, material: Material, *, rate: float, seconds: float, seed: int
) -> dict[str, float]:
    command = [
        sys.executable, "-m", "benchmarks.serving.open_loop", server.url, "--listing", str(bodies.listing),
        "--content-type", bodies.content_type, "--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(material.folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"the open-loop load failed against {server.stack.name}:\n{done.stderr[-3000:]}\n{server.log()}"
        )
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def _measured(
    stack: str, image: str, share: int, rate: float, said: Mapping[str, float], repeat: int
) -> list[Measurement]:
    figures = (
        ("rate", rate, "requests/s"),
        ("latency_p50", said["p50"], "ms"),
        ("latency_p99", said["p99"], "ms"),
        ("latency_p999", said["p999"], "ms"),
        ("errors", said["errors"], "requests"),
        ("late_p99", said["late_p99"], "ms"),
        ("cpu_load", said["cpu"], "ms/request"),
    )
    return [Measurement(stack, image, f"open {share}%", 0, name, value, unit, repeat) for name, value, unit in figures]
