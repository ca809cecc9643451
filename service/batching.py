"""Gathers images that arrive together into one inference: what a GPU needs to be worth its price.

While one batch is computed the next one gathers, so the window only matters when the device is idle. On a processor
this buys nothing (each thread infers for itself) and is off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from perennial.graph import Graph, GraphOutput
from perennial.images import Pixels
from service import metrics
from service.threads import Threads


@dataclass(frozen=True, slots=True)
class _Waiting:
    """`pixels`: uint8 [H, W, 3]."""

    graph: Graph
    pixels: Pixels
    output: asyncio.Future[GraphOutput]


class Batching:
    """Used in the event loop's thread only. What waits is bounded by the service's slots.

    Args:
        most: images in one inference.
        seconds: how long the first image waits for others when the device is idle.
    """

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most: Final = most
        self._seconds: Final = seconds
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._thread = Threads(1, "batch")

    async def run(self, graph: Graph, pixels: Pixels) -> GraphOutput:
        """Infer one image, uint8 [H, W, 3], in the company of others; its own row, as `Graph.run` gives it."""
        loop = asyncio.get_running_loop()
        output: asyncio.Future[GraphOutput] = loop.create_future()
        self._waiting.append(_Waiting(graph, pixels, output))
        if not self._busy:
            if len(self._waiting) >= self._most:
                self._start()
            elif self._timer is None:
                self._timer = loop.call_later(self._seconds, self._start)
        return await output

    def close(self) -> None:
        """Finish the batch that is computed now."""
        self._thread.close()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._next()
        if not batch:
            return
        self._busy = True
        metrics.batch_images.observe(len(batch))
        pixels = np.stack([each.pixels for each in batch])
        self._thread.call(batch[0].graph.run, pixels).add_done_callback(lambda done: self._finish(batch, done))

    def _next(self) -> list[_Waiting]:
        """The next images that one graph is to see: a swap lies between two batches, never within one."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._most:
            if batch and self._waiting[0].graph is not batch[0].graph:
                break
            each = self._waiting.popleft()
            if not each.output.done():  # else the request was given up meanwhile
                batch.append(each)
        return batch

    def _finish(self, batch: list[_Waiting], done: asyncio.Future[GraphOutput]) -> None:
        self._busy = False
        error = done.exception()
        for row, each in enumerate(batch):
            if each.output.done():
                continue
            if error is not None:
                each.output.set_exception(error)
            else:
                each.output.set_result(_row(done.result(), row))
        if self._waiting:
            self._start()


def _row(output: GraphOutput, index: int) -> GraphOutput:
    only = slice(index, index + 1)
    return GraphOutput(output.probabilities[only], output.embedding[only], output.properties[only])
