"""The measurements in words: medians, goals, and where the time goes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.serving.results import CLOSED, THROUGHPUT, Measurement, invalid, medians, throughput, verdicts
from benchmarks.serving.stacks import CORES


def text(rows: Sequence[Measurement], about: Mapping[str, str]) -> str:
    """What is printed at the end."""
    lines = ["", *(f"{key}: {value}" for key, value in about.items())]
    found = medians(rows)
    images = list(dict.fromkeys(row.image for row in rows if row.metric == THROUGHPUT))
    for image in images:
        lines += ["", *_table(found, rows, image)]
    for image in images:
        lines += ["", *_rest(found, image)]
    lines += _latencies(found, rows)
    for row in rows:
        if row.metric == "memory_slope":
            lines += ["", f"memory of {row.stack} over a long run: {row.value:+.1f} MB each 100,000 requests"]
    said = verdicts(rows)
    if said:
        lines += ["", "goals:"]
        lines += [f"  {'met   ' if v.met else 'MISSED'} {v.goal}: {v.measured:.2f} (asked {v.asked:g})" for v in said]
    for row in invalid(rows):
        lines.append(
            f"INVALID: {row.stack}, {row.image}, {row.load}, {row.clients} clients, round {row.repeat + 1}: "
            f"{row.value:.0f} errors"
        )
    return "\n".join([*lines, ""])


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


Found = Mapping[tuple[str, str, str, int, str], float]


def _table(found: Found, rows: Sequence[Measurement], image: str) -> list[str]:
    clients = sorted(
        {row.clients for row in rows if row.image == image and row.metric == THROUGHPUT and row.stack != "limit"}
    )
    stacks = list(dict.fromkeys(row.stack for row in rows if row.image == image and row.load == CLOSED))
    head = "".join(f"{count:>9}" for count in clients)
    lines = [f"{image}: answers a second (median) by clients, and with the most clients: latency, memory, processor"]
    lines.append(f"  {'':<18}{head}   p50 ms   p99 ms  worker MB  all MB  start s  server ms  load ms")
    for stack in stacks:
        rates = "".join(f"{throughput(found, stack, image, count):>9.1f}" for count in clients)
        if stack == "limit":
            lines.append(f"  {stack:<18}{rates}")
            continue

        def figure(metric: str, stack: str = stack) -> float:
            return found.get((stack, image, CLOSED, clients[-1], metric), float("nan"))

        start = found.get((stack, "", "start", 0, "startup"), float("nan"))
        lines.append(
            f"  {stack:<18}{rates}{figure('latency_p50'):>9.1f}{figure('latency_p99'):>9.1f}"
            f"{figure('memory_worker'):>11.0f}{figure('memory_total'):>8.0f}{start:>9.2f}"
            f"{figure('cpu_server'):>11.2f}{figure('cpu_load'):>9.2f}"
        )
    return lines


def _latencies(found: Found, rows: Sequence[Measurement]) -> list[str]:
    points = list(dict.fromkeys((row.stack, row.image, row.load) for row in rows if row.load.startswith("open ")))
    if not points:
        return []
    lines = [
        "",
        "open loop, Poisson arrivals at a share of each stack's own capacity: latency from when a request was due, ms",
        f"  {'':<18}{'image':<11}{'load':<10}      rate      p50      p99    p99.9   generator: late p99, processor",
    ]
    for stack, image, load in sorted(points):
        rate, p50, p99, p999, late, cpu = (
            found.get((stack, image, load, 0, metric), float("nan"))
            for metric in ("rate", "latency_p50", "latency_p99", "latency_p999", "late_p99", "cpu_load")
        )
        lines.append(
            f"  {stack:<18}{image:<11}{load:<10}{rate:>10.1f}{p50:>9.1f}{p99:>9.1f}{p999:>9.1f}"
            f"{late:>22.1f}{cpu:>11.2f}"
        )
    return lines


def _rest(found: Found, image: str) -> list[str]:
    """What Perennial spends beyond the limit, in milliseconds of processor time a request."""
    counts = [count for (stack, size, load, count, metric) in found
              if (stack, size, load, metric) == ("perennial", image, CLOSED, THROUGHPUT)]  # fmt: skip
    limits = {
        count: value
        for (stack, size, _, count, metric), value in found.items()
        if (stack, size, metric) == ("limit", image, THROUGHPUT)
    }
    if not counts or not limits:
        return []
    clients, threads = max(counts), max(limits, key=lambda count: limits[count])

    def figure(metric: str) -> float:
        return found.get(("perennial", image, CLOSED, clients, metric), float("nan"))

    budget = 1000 * CORES / figure(THROUGHPUT)
    work = found["limit", image, CLOSED, threads, "cpu_server"]
    server, load = figure("cpu_server"), figure("cpu_load")
    stages = {key[4].removeprefix("stage_"): value for key, value in found.items()
              if key[:4] == ("perennial", image, CLOSED, clients) and key[4].startswith("stage_")}  # fmt: skip
    lines = [
        f"{image}, {clients} clients: where {budget:.2f} ms of processor time a request go (all cores)",
        f"  decode, resize, infer, as in the limit   {work:6.2f} ms",
        f"  HTTP, recording, threads                 {server - work:6.2f} ms",
        f"  wrk                                      {load:6.2f} ms",
        f"  idle, other processes                    {budget - server - load:6.2f} ms",
    ]
    if stages:
        lines.append("  wall time in each stage (waiting included): "
                     + ", ".join(f"{stage} {value:.2f} ms" for stage, value in stages.items()))  # fmt: skip
    return lines
