"""Rounds over the stacks: in each round every stack is started once, measured at every point, and ended.

Neighbours on a shared machine come and go over minutes, so a stack is not measured five times in a row: each round
passes all of them, every second one backwards.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from benchmarks.serving import wrk
from benchmarks.serving.material import Bodies, Material, environment
from benchmarks.serving.results import CLOSED, THROUGHPUT, Measurement
from benchmarks.serving.stacks import CORES, MemoryWatch, Server, Stack, ask, serving

LIMIT: Final = "limit"
_WARM_UP: Final = 2.0
# A point must see each client answered a few times, or the rate is that of the first answers.
_ANSWERS_A_CLIENT: Final = 4
_LONGEST: Final = 6  # times the usual duration
# Decoders, resizers and precisions differ a little.
_LEAST_AGREEMENT: Final = 0.5
_SERVED: Final = re.compile(r'^perennial_live_model_info\{.*?precision="(\w+)",runtime="(\w+)".*?\} 1', re.MULTILINE)
_STAGE: Final = re.compile(r'^perennial_stage_seconds_(sum|count)\{.*?stage="(\w+)".*?\} (\S+)$', re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run measures."""

    stacks: Sequence[Stack]
    images: Sequence[str]
    clients: Sequence[int]
    seconds: float
    with_limit: bool


def round_of(plan: Plan, material: Material, repeat: int, say: Say) -> list[Measurement]:
    """Every stack once."""
    names: list[Stack | None] = [*([None] if plan.with_limit else []), *plan.stacks]
    rows = []
    for stack in names if repeat % 2 == 0 else reversed(names):
        rows += _limit(plan, material, repeat, say) if stack is None else _stack(stack, plan, material, repeat, say)
    return rows


def best_litserve(stacks: Sequence[Stack], plan: Plan, material: Material, say: Say) -> tuple[str, list[Measurement]]:
    """The name of the fastest of several settings at the first image size and the most clients, and what was
    measured."""
    small = Plan((), plan.images[:1], [max(plan.clients)], plan.seconds, False)
    rows = [row for stack in stacks for row in _stack(stack, small, material, 0, say)]
    rates = {row.stack: row.value for row in rows if row.metric == THROUGHPUT}
    return max(rates, key=lambda name: rates[name]), rows


def _limit(plan: Plan, material: Material, repeat: int, say: Say) -> list[Measurement]:
    rows = []
    for image in plan.images:
        for threads in (CORES, CORES + 1):
            command = [
                sys.executable, "-m", "benchmarks.serving.limit", "--bundle", str(material.bundle.path),
                "--listing", str(material.bodies(image).listing), "--threads", str(threads),
                "--seconds", str(plan.seconds),
            ]  # fmt: skip
            done = subprocess.run(
                command, env=environment(material.folder), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"the no-HTTP limit could not be measured:\n{done.stderr}")
            said = json.loads(done.stdout.splitlines()[-1])
            rate = said["images"] / said["seconds"]
            cpu = 1000 * said["cpu"] / max(1, said["images"])
            rows.append(Measurement(LIMIT, image, CLOSED, threads, THROUGHPUT, rate, "images/s", repeat))
            rows.append(Measurement(LIMIT, image, CLOSED, threads, "cpu_server", cpu, "ms/image", repeat))
            say(f"{LIMIT:<18} {image:<10} {threads:>3} threads {rate:>8.1f} images/s")
    return rows


def _stack(stack: Stack, plan: Plan, material: Material, repeat: int, say: Say) -> list[Measurement]:
    rows = []
    with serving(stack, material) as server:
        rows.append(Measurement(stack.name, "", "start", 0, "startup", server.startup, "s", repeat))
        _same_precision(server, material)
        for image in plan.images:
            bodies = material.bodies(image, stack.form_field)
            agreement = _agreement(server, bodies, material.labels(image))
            rows.append(Measurement(stack.name, image, CLOSED, 0, "agreement", agreement, "share", repeat))
            rate = wrk.run(server.url, bodies, clients=CORES, seconds=_WARM_UP, mark=_mark(stack)).rate
            server.settle()
            for clients in plan.clients:
                seconds = duration(plan.seconds, clients, rate)
                point, load = _point(server, material, image, clients, seconds, repeat)
                rows += point
                rate = load.rate or rate
                flaw = f"  {load.errors} ERRORS" if load.errors else ""
                say(
                    f"{stack.name:<18} {image:<10} {clients:>3} clients {load.rate:>8.1f} requests/s  "
                    f"p50 {load.p50:.1f} p99 {load.p99:.1f} ms{flaw}"
                )
    return rows


def _agreement(server: Server, bodies: Bodies, labels: Sequence[str]) -> float:
    """The share of photos to which the server gives the expected label: a guard that all run the same network."""
    said = [ask(server, body, bodies.content_type)["label"] for body in bodies.read()]
    agreement = sum(map(str.__eq__, said, labels)) / len(labels)
    if agreement < _LEAST_AGREEMENT:
        raise SystemExit(f"{server.stack.name} answers {said} where the bundle says {labels}: not the same network")
    return agreement


def duration(seconds: float, clients: int, rate: float) -> float:
    """How long to measure so that each client is answered a few times, at the rate seen before."""
    needed = _ANSWERS_A_CLIENT * clients / rate if rate else float("inf")
    return min(max(seconds, needed), seconds * _LONGEST)


def _point(
    server: Server, material: Material, image: str, clients: int, seconds: float, repeat: int
) -> tuple[list[Measurement], wrk.Load]:
    stack = server.stack
    stages, used = stage_sums(server), server.cpu()
    with MemoryWatch(server) as memory:
        bodies = material.bodies(image, stack.form_field)
        load = wrk.run(server.url, bodies, clients=clients, seconds=seconds, mark=_mark(stack))
    cpu = server.cpu() - used
    server.settle()
    answered = max(1, load.requests)
    figures = [
        (THROUGHPUT, load.rate, "requests/s"),
        ("latency_p50", load.p50, "ms"),
        ("latency_p90", load.p90, "ms"),
        ("latency_p99", load.p99, "ms"),
        ("errors", float(load.errors), "requests"),
        ("cpu_server", 1000 * cpu / answered, "ms/request"),
        ("cpu_load", load.cpu / answered, "ms/request"),
        ("memory_worker", memory.worker, "MB"),
        ("memory_total", memory.total, "MB"),
    ]
    for stage, (total, count) in stage_sums(server).items():
        total_before, count_before = stages.get(stage, (0.0, 0.0))
        if count > count_before:
            figures.append((f"stage_{stage}", 1000 * (total - total_before) / (count - count_before), "ms"))
    rows = [Measurement(stack.name, image, CLOSED, clients, name, value, unit, repeat) for name, value, unit in figures]
    return rows, load


def stage_sums(server: Server) -> dict[str, tuple[float, float]]:
    """Seconds and images so far by stage, of Perennial; nothing of the others."""
    return parse_stages(_metrics(server))


def parse_stages(text: str) -> dict[str, tuple[float, float]]:
    """(sum, count) of the histogram `perennial_stage_seconds` by stage, from the text of `/metrics`."""
    sums: dict[str, dict[str, float]] = {}
    for kind, stage, value in _STAGE.findall(text):
        sums.setdefault(stage, {})[kind] = float(value)
    return {stage: (each.get("sum", 0.0), each.get("count", 0.0)) for stage, each in sums.items()}


def _same_precision(server: Server, material: Material) -> None:
    found = _SERVED.search(_metrics(server))
    if found and f"{found[1]} on {found[2]}" != material.computes():
        raise SystemExit(f"{server.stack.name} serves in {found[0]}, but the limit is in {material.computes()}")


def _metrics(server: Server) -> str:
    return httpx.get(f"{server.base}/metrics", timeout=10).text if server.stack.settings else ""


def _mark(stack: Stack) -> str:
    # New for every run of the load, for the counter starts anew with it.
    return secrets.token_hex(8) if stack.unique else ""
