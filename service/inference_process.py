"""The process that decodes images and runs the network: `python -m service.inference_process`, started by
`service/inference.py`.

It imports neither the server nor the ledger, so it starts in a moment, shares no Python lock with the event loop, and
if an image or a graph ever brings native code down, the server is not brought down with it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from perennial.errors import InvalidBundle, PerennialError
from perennial.graph import CUDA, Graph, GraphOutput, available_precisions, fastest_runtime
from perennial.images import ImageHeader, ImageLimits, InputRule, prepare
from service.batching import Batching
from service.inference_wire import MESSAGE_BYTES, ImageMemory, Job, Scored, pack_error, pack_scored

# A thread that has decoded waits at most so long for Python's lock. Python's own 5 ms is longer than an inference.
_SWITCH_SECONDS: Final = 0.0005


@dataclass(frozen=True, slots=True)
class Setup:
    """What the process is started with. The first three are descriptors: of the two sockets and of the memory."""

    jobs: int
    control: int
    memory: int
    slots: int
    slot_bytes: int
    threads: int
    runtime: str | None
    max_bytes: int
    max_pixels: int
    batching: str
    batch_images: int
    batch_window: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class _Model:
    graph: Graph
    rule: InputRule


@dataclass(frozen=True, slots=True)
class _About:
    """An image that is decoded, and which model is to score it."""

    job: Job
    model: int
    header: ImageHeader
    digest: str
    began: float
    decoded: float


class InferenceProcess:
    """Threads that take jobs from one socket, and calls on the other: load a model, forget one."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._limits = ImageLimits(setup.max_bytes, setup.max_pixels)
        self._jobs = socket.socket(fileno=setup.jobs)
        self._control = socket.socket(fileno=setup.control)
        self._memory = ImageMemory(setup.slots, setup.slot_bytes, setup.memory)
        self._models: dict[int, _Model] = {}
        self._batching = Batching(most=setup.batch_images, seconds=setup.batch_window)

    def run(self) -> None:
        """Returns when the service is gone."""
        for number in range(self._setup.threads):
            threading.Thread(target=self._work, name=f"infer-{number}", daemon=True).start()
        # Found out before it is asked, while the service is starting still.
        self._answer({"call": "runtime", "with": {"runtime": self._setup.runtime}})
        while message := self._control.recv(MESSAGE_BYTES):
            self._control.send(json.dumps(self._answer(json.loads(message))).encode())

    def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            if call["call"] == "load":
                return self._load(**call["with"])
            if call["call"] == "forget":
                self._models.pop(call["with"]["model"], None)
                return {}
            runtime = call["with"]["runtime"] or fastest_runtime()
            return {"runtime": runtime, "precisions": available_precisions(runtime)}
        except PerennialError as error:
            return {"error": [type(error).__name__, error.detail]}
        except Exception as error:  # noqa: BLE001 - a bundle can be broken in any way; the service goes on with the old one
            return {"error": [InvalidBundle.__name__, f"{type(error).__name__}: {error}"]}

    def _load(
        self, model: int, path: str, runtime: str, precision: str, resize: int, crop: int, classes: int
    ) -> dict[str, Any]:
        graph = Graph(Path(path), threads=self._setup.threads, precision=precision, runtime=runtime)
        self._warm_up(graph, crop, classes)
        self._models[model] = _Model(graph, InputRule(resize, crop))
        return {"batched": self._is_batched(graph)}

    def _warm_up(self, graph: Graph, crop: int, classes: int) -> None:
        blank = np.zeros((1, crop, crop, 3), dtype=np.uint8)
        try:
            with ThreadPoolExecutor(self._setup.threads) as pool:  # as many at once as there will be
                outputs = list(pool.map(lambda _: graph.run(blank), range(self._setup.threads)))
        except (RuntimeError, ValueError) as error:
            raise InvalidBundle(f"the graph does not run on {crop} x {crop} pixels: {error}") from error
        probabilities = outputs[0].probabilities
        if not np.isfinite(probabilities).all():
            raise InvalidBundle("the graph's probabilities are not finite")
        if probabilities.shape != (1, classes):
            raise InvalidBundle(f"the graph gives {probabilities.shape[-1]} probabilities, the manifest {classes}")

    def _work(self) -> None:
        while message := self._jobs.recv(MESSAGE_BYTES):
            self._do(Job.unpack(message))

    def _do(self, job: Job) -> None:
        began = time.perf_counter()
        try:
            data = self._memory.get(job.slot, job.length)
            number, digest = job.model, None
            if job.split is not None:
                digest = hashlib.sha256(data).hexdigest()
                number = job.split.model if job.split.takes(digest) else number
            model = self._models[number]
            prepared = prepare(data, model.rule, self._limits)
            digest = digest or hashlib.sha256(data).hexdigest()
            about = _About(job, number, prepared.header, digest, began, time.perf_counter())
            if self._is_batched(model.graph):
                self._batching.add(model.graph, prepared.pixels, partial(self._scored, about))
                return
            output = model.graph.run(prepared.pixels[np.newaxis])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            self._failed(job, error)
            return
        self._scored(about, output, 0)

    def _is_batched(self, graph: Graph) -> bool:
        return graph.device == CUDA if self._setup.batching == "auto" else self._setup.batching == "always"

    def _scored(self, about: _About, output: GraphOutput | Exception, batch: int) -> None:
        if isinstance(output, Exception):
            self._failed(about.job, output)
            return
        scored = Scored(
            header=about.header,
            digest=about.digest,
            probabilities=output.probabilities[0],
            embedding=output.embedding[0],
            properties=output.properties[0],
            began=about.began,
            decode_seconds=about.decoded - about.began,
            infer_seconds=time.perf_counter() - about.decoded,
            batch=batch,
            model=about.model,
        )
        self._jobs.send(pack_scored(self._memory, about.job.slot, scored))

    def _failed(self, job: Job, error: Exception) -> None:
        self._jobs.send(pack_error(job.slot, error, "".join(traceback.format_exception(error))))


def main() -> None:
    # The service ends this process by closing its sockets, once everything that was accepted is answered.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_SECONDS)
    InferenceProcess(Setup(**json.loads(sys.argv[1]))).run()
    os._exit(0)  # nobody waits for the answers of what runs still, nor for OpenVINO to take itself apart


if __name__ == "__main__":
    main()
