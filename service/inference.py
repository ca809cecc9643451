"""The service's side of its inference process: started, fed, and started again when it dies.

Decoding and the network run in a process of their own (service/inference_process.py). An image that brings native code
down costs the images that were being worked on, which are answered with 503, and a second without answers; the server,
what waits in its queue and what it has recorded stay.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from perennial import errors
from perennial.bundle import Bundle
from perennial.errors import InferenceLost, PerennialError
from perennial.settings_sections import ServeSettings
from service import metrics
from service.inference_process import Setup
from service.inference_wire import MESSAGE_BYTES, ImageMemory, Job, Scored, Split, unpack_reply
from service.problems import logger

_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
_LEAST_SLOT_BYTES: Final = 2**20  # room for an image's vectors, however small images must be
_STOP_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 1.0
_STUCK: Final = 2.0  # times the setting `serve.timeout`: whoever waited has long been answered
_LONGEST_PAUSE_SECONDS: Final = 30.0
# Images that lie ready beside those that are worked on, so that no thread waits for the event loop. (Where images are
# gathered for a device, two batches.)
_AHEAD: Final = 3
# glibc gives freed memory back to the system and asks for it again for every image, page by page: a twentieth of the
# time of a small one. These keep up to so many bytes instead.
_MALLOC: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TOP_PAD_": str(4 * 2**20),
}


@dataclass(eq=False, slots=True, weakref_slot=True)
class ModelHandle:
    """A graph that the inference process holds for as long as this object lives."""

    number: int
    runtime: str
    precision: str
    call: dict[str, Any] = field(repr=False)


@dataclass(slots=True)
class _Image:
    """One that waits or is worked on. `sent`: when the process got it (`time.monotonic`)."""

    model: ModelHandle
    data: bytes
    scored: asyncio.Future[Scored]
    split: Split | None = None
    sent: float = 0.0


class Inference:
    """Scores images in a process of its own.

    `score` is for the event loop's thread; the other methods are for any other one, and block.

    Args:
        serve: its `batching`, `batch_images`, `batch_window`, `max_bytes`, `max_pixels` and `timeout`.
        threads: how many images are decoded and inferred at once.
    """

    def __init__(self, serve: ServeSettings, threads: int) -> None:
        self._serve = serve
        self._threads = threads
        slots = threads + 2 * serve.batch_images
        self._memory = ImageMemory(slots, max(serve.max_bytes, _LEAST_SLOT_BYTES))
        self._free = list(range(slots))
        self.most_working = threads + _AHEAD  #: images that are sent to the process at once
        self._waiting: deque[_Image] = deque()
        self._working: dict[int, _Image] = {}
        self._buffer = memoryview(bytearray(MESSAGE_BYTES))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: int | None = None
        self._lock = threading.Lock()  # one call on the process at a time
        self._models: weakref.WeakValueDictionary[int, ModelHandle] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)
        self._loaded: set[int] = set()
        self._closing = threading.Event()
        self._stuck_after = _STUCK * serve.timeout
        self._start()
        self._up = True
        self.ends = 0  #: how often the process ended
        self._watcher = threading.Thread(target=self._watch, name="inference", daemon=True)
        self._watcher.start()

    @property
    def ready(self) -> bool:
        """Whether the process runs, with every model that is in use."""
        return self._up

    @property
    def idle(self) -> bool:
        """Whether it runs and has nothing to do. For the event loop's thread."""
        return self._up and not self._working and not self._waiting

    def runtime(self, name: str | None) -> tuple[str, tuple[str, ...]]:
        """The runtime of that name, None for the fastest, and the precisions it computes in natively on this machine.

        Raises:
            InvalidSettings: it is not installed.
            InferenceLost.
        """
        said = self._call("runtime", runtime=name)
        return said["runtime"], tuple(said["precisions"])

    def load(self, bundle: Bundle, runtime: str, precision: str) -> ModelHandle:
        """Compile and warm up a bundle's graph.

        Raises:
            InvalidSettings: this machine lacks the runtime or the precision.
            InvalidBundle: the graph is broken, or does not do what the manifest says.
            InferenceLost: the process died of it.
        """
        manifest = bundle.manifest
        number = next(self._numbers)
        call = {
            "model": number,
            "path": str(bundle.graph_in(precision)),
            "runtime": runtime,
            "precision": precision,
            "resize": manifest.input.resize,
            "crop": manifest.input.crop,
            "classes": len(manifest.classes),
        }
        said = self._call("load", **call)
        self.most_working = self._threads + (2 * self._serve.batch_images if said["batched"] else _AHEAD)
        handle = ModelHandle(number, runtime, precision, call)
        self._models[number] = handle
        self._loaded.add(number)
        return handle

    def forget_unused(self) -> None:
        """Let go of graphs that nobody holds a handle of any more."""
        for number in self._loaded - set(self._models.keys()):
            with suppress(InferenceLost):  # the next process does not get it at all
                self._call("forget", model=number)
            self._loaded.discard(number)

    def score(self, model: ModelHandle, data: bytes, split: Split | None = None) -> asyncio.Future[Scored]:
        """Decode and infer one image. What waits is bounded by the caller, who holds the handles of both models where
        a `split` gives some images to another one.

        The future raises InvalidImage, InferenceLost (the process died meanwhile) or InferenceFailed.
        """
        if self._loop is None:
            self._loop_thread = threading.get_ident()
            self._loop = asyncio.get_running_loop()
            if self._up:
                self._loop.add_reader(self._jobs, self._receive, self._jobs)
        each = _Image(model, data, self._loop.create_future(), split)
        if self._up and len(self._working) < self.most_working:
            self._send(each)
        else:
            self._waiting.append(each)
        return each.scored

    def close(self) -> None:
        """End the process."""
        self._closing.set()
        for each in (self._jobs, self._control):
            with suppress(OSError):  # it has ended by itself
                each.shutdown(socket.SHUT_RDWR)
        self._watcher.join(_STOP_SECONDS)
        if self._watcher.is_alive():
            self._process.kill()
            self._watcher.join()
        self._control.close()
        if self._loop is not None and self._loop.is_running() and threading.get_ident() != self._loop_thread:
            self._in_loop(self._leave, self._jobs)
        else:
            self._leave(self._jobs)
        self._memory.close()

    def _send(self, each: _Image) -> None:
        slot = self._free.pop()
        self._working[slot] = each
        each.sent = time.monotonic()
        self._memory.put(slot, each.data)
        try:
            self._jobs.send(Job(slot, len(each.data), each.model.number, each.split).pack())
        except OSError:  # the process is gone; its watcher answers for everything that it worked on
            return

    def _send_waiting(self) -> None:
        while self._waiting and len(self._working) < self.most_working:
            each = self._waiting.popleft()
            if not each.scored.done():  # else the request was given up meanwhile
                self._send(each)

    def _receive(self, jobs: socket.socket) -> None:
        while True:
            try:
                length = jobs.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                length = 0
            if length == 0:  # the process is gone; see above
                asyncio.get_running_loop().remove_reader(jobs)
                return
            slot, outcome = unpack_reply(self._memory, self._buffer[:length])
            each = self._working.pop(slot)
            self._memory.release(slot, len(each.data))
            self._free.append(slot)
            if self._waiting:
                self._send_waiting()
            if each.scored.done():
                continue
            if isinstance(outcome, Exception):
                each.scored.set_exception(outcome)
            else:
                each.scored.set_result(outcome)

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        with self._lock:
            try:
                self._control.send(json.dumps({"call": name, "with": arguments}).encode())
                message = self._control.recv(MESSAGE_BYTES)
            except OSError:
                message = b""
        if not message:
            raise InferenceLost("the inference process ended; it is being started again")
        said: dict[str, Any] = json.loads(message)
        if "error" in said:
            kind, detail = said["error"]
            raise getattr(errors, kind, PerennialError)(detail)
        return said

    # --- its life

    def _start(self) -> None:
        serve = self._serve
        jobs, their_jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        jobs.setblocking(False)
        setup = Setup(
            jobs=their_jobs.fileno(),
            control=their_control.fileno(),
            memory=self._memory.descriptor,
            slots=self._memory.count,
            slot_bytes=self._memory.size,
            threads=self._threads,
            runtime=None if serve.runtime == "auto" else serve.runtime,
            max_bytes=serve.max_bytes,
            max_pixels=serve.max_pixels,
            batching=serve.batching,
            batch_images=serve.batch_images,
            batch_window=serve.batch_window,
        )
        with their_jobs, their_control:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.inference_process", setup.to_json()],
                pass_fds=(setup.jobs, setup.control, setup.memory),
                env={**_MALLOC, **_harmless(os.environ), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
            )
        self._jobs, self._control = jobs, control

    def _watch(self) -> None:
        failures = 0
        while not self._closing.is_set():
            began = time.monotonic()
            status = self._wait()
            if self._closing.is_set():
                return
            failures = 0 if time.monotonic() - began > _LONGEST_PAUSE_SECONDS else failures + 1
            metrics.inference_restarts.inc()
            self.ends += 1
            logger.error("the inference process ended (%s); it is started again", _cause(status))
            self._up = False
            self._in_loop(self._lose, self._jobs)
            self._closing.wait(min(0.1 * 2**failures, _LONGEST_PAUSE_SECONDS) if failures > 1 else 0.0)
            try:
                self._start_again()
            except OSError as error:  # no memory, no processes left; tried again after a pause
                logger.error("the inference process cannot be started: %s", error)

    def _wait(self) -> int:
        """Until the process ends, by itself or because it is stuck on an image. Its exit status."""
        while True:
            try:
                return self._process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                longest = max((time.monotonic() - each.sent for each in list(self._working.values())), default=0.0)
            if longest > self._stuck_after:
                logger.error("an image has been worked on for %.0f s; the inference process is ended", longest)
                self._process.kill()

    def _start_again(self) -> None:
        self._control.close()
        self._start()
        try:
            for handle in list(self._models.values()):
                self._call("load", **handle.call)
        except PerennialError as error:
            logger.error("a model that was served cannot be loaded again: %s", error)
            self._process.kill()
            return
        self._up = True
        logger.info("the inference process is back")
        self._in_loop(self._resume)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended; nobody waits any more
                self._loop.call_soon_threadsafe(function, *arguments)

    def _leave(self, jobs: socket.socket) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(jobs)
        jobs.close()

    def _lose(self, jobs: socket.socket) -> None:
        self._leave(jobs)
        lost, self._working = self._working, {}
        self._free = list(range(self._memory.count))
        for each in lost.values():
            if not each.scored.done():
                each.scored.set_exception(InferenceLost("the process that was working on this image ended; try again"))

    def _resume(self) -> None:
        assert self._loop is not None
        self._loop.add_reader(self._jobs, self._receive, self._jobs)
        self._send_waiting()


def threads_for(serve: ServeSettings) -> int:
    """Threads of one worker: as set, else its share of the cores and one more, which works while another waits for
    Python's lock."""
    return serve.threads or max(1, _cores() // serve.workers) + 1


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return cores


def _harmless(variables: Mapping[str, str]) -> dict[str, str]:
    """Without our own settings: the process that reads strangers' bytes needs no password of the database."""
    return {name: value for name, value in variables.items() if not name.startswith("PERENNIAL_")}


def _cause(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
