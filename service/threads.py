"""Threads that work for the event loop.

A leaner `ThreadPoolExecutor`: one queue, one wake-up of the loop for each answer, and no second future.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
_Job = tuple["asyncio.AbstractEventLoop", "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]

_END: Final = None


class Threads:
    """`count` threads that start at once. What waits is bounded by the caller."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run a function in one of the threads. A job whose future is cancelled before its turn is not run."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, future, function, arguments))
        return future

    def close(self) -> None:
        """Finish what waits, then end."""
        for _ in self._threads:
            self._jobs.put(_END)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not _END:
            loop, future, function, arguments = job
            if future.cancelled():
                continue
            try:
                settle, outcome = future.set_result, function(*arguments)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
                settle, outcome = future.set_exception, error
            try:
                loop.call_soon_threadsafe(_settle, future, settle, outcome)
            except RuntimeError:  # the loop has ended; nobody waits any more
                return


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], outcome: Any) -> None:
    if not future.done():  # the request was given up meanwhile
        settle(outcome)
