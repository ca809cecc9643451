"""Gathers images that arrive together into one inference: what a GPU needs to be worth its price.

While one batch is computed the next one gathers, so the window only matters when the device is idle. On a processor
this buys nothing (each thread infers for itself) and is off.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from perennial.graph import Graph, GraphOutput
from perennial.images import Pixels

#: Called with an image's own row of the output, or with what went wrong, and with the number of images in the inference
#: (for the first of them; 0 for the others).
Done = Callable[[GraphOutput | Exception, int], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """`pixels`: uint8 [H, W, 3]."""

    graph: Graph
    pixels: Pixels
    done: Done


class Batching:
    """One thread that infers. What waits is bounded by those who call.

    Args:
        most: images in one inference.
        seconds: how long the first image waits for others when the device is idle.
    """

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most: Final = most
        self._seconds: Final = seconds
        self._waiting: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._next: _Waiting | None = None  # of another graph than the batch that was being gathered
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, graph: Graph, pixels: Pixels, done: Done) -> None:
        """Infer one image, uint8 [H, W, 3], in the company of others. `done` is called in the batching thread."""
        self._waiting.put(_Waiting(graph, pixels, done))
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch = self._gather()
            try:
                output = batch[0].graph.run(np.stack([each.pixels for each in batch]))
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
                for each in batch:
                    each.done(error, 0)
                continue
            for index, each in enumerate(batch):
                each.done(_row(output, index), 0 if index else len(batch))

    def _gather(self) -> list[_Waiting]:
        """The next images that one graph is to see: a swap lies between two batches, never within one."""
        idle = self._next is None and self._waiting.empty()
        first = self._next or self._waiting.get()
        self._next = None
        batch = [first]
        until = time.monotonic() + self._seconds if idle else 0.0
        while len(batch) < self._most:
            try:
                each = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if each.graph is not first.graph:
                self._next = each
                break
            batch.append(each)
        return batch


def _row(output: GraphOutput, index: int) -> GraphOutput:
    only = slice(index, index + 1)
    return GraphOutput(output.probabilities[only], output.embedding[only], output.properties[only])
