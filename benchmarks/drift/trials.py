"""Trials on several processes: none depends on another, and each draws by seeds of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from benchmarks.drift.worlds import World

Task = TypeVar("Task")
Found = TypeVar("Found")

_shared: list[Any] = []


def run(function: Callable[[World, Task], Found], world: World, tasks: Sequence[Task], jobs: int) -> Iterator[Found]:
    """`function(world, task)` of each task, in order. With one job it all happens here."""
    if jobs == 1:
        yield from (function(world, task) for task in tasks)
        return
    # Not forked: a graph's threads run in this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _share, (function, world)) as pool:
        yield from pool.map(_one, tasks)


def _share(function: Callable[[World, Any], Any], world: World) -> None:
    threadpool_limits(1)  # the processes are the threads
    _shared[:] = [function, world]


def _one(task: Any) -> Any:
    function, world = _shared
    return function(world, task)
