"""The servers under test: how each is started, fed, watched and ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.serving.material import NAME, ONNX, Material, environment, open_home
from benchmarks.serving.peers.network import write_onnx

CORES: Final = os.cpu_count() or 1
LITSERVE: Final = ((1, 1), (2, 1), (1, 8), (2, 8))
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 5.0  # its home is thrown away, so nothing is lost with what it did not finish


@dataclass(frozen=True)
class Stack:
    """`command` gets the port. `form_field` is the multipart field an image is sent in; empty sends the bare body.
    `unique`: no two requests carry the same bytes."""

    name: str
    command: Callable[[int], Sequence[str]]
    path: str
    ready: str = "/readyz"
    form_field: str = ""
    unique: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def perennial(name: str, **settings: str) -> Stack:
    return Stack(
        name,
        lambda port: ["commands.main", "serve", "--port", str(port), "--name", NAME],
        "/v1/predict",
        unique=settings.get("PERENNIAL_SERVE__CAPTURE") == "1",
        settings=settings,
    )


def litserve(workers: int, batch: int, name: str = "") -> Stack:
    return Stack(
        name or f"litserve-{workers}x{batch}",
        lambda port: ["benchmarks.serving.peers.litserve_app", str(port), str(workers), str(batch)],
        "/predict",
        ready="/health",
        form_field="request",
    )


STACKS: Final = {
    stack.name: stack
    for stack in (
        perennial("perennial", PERENNIAL_SERVE__CAPTURE="0"),
        perennial("perennial_capture", PERENNIAL_SERVE__CAPTURE="1"),
        Stack(
            "fastapi",
            lambda port: [
                "uvicorn", "benchmarks.serving.peers.fastapi_app:app", "--port", str(port), "--workers", str(CORES),
                "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
            ],
            "/predict",
        ),
        Stack(
            "bentoml",
            lambda port: [
                "bentoml_cli.cli", "serve", "benchmarks.serving.peers.bentoml_app:Plain", "--port", str(port),
                "--host", "127.0.0.1",
            ],
            "/predict",
            form_field="images",
        ),
    )
}  # fmt: skip


class Server:
    """A running stack. `startup`: seconds from the start of the process to the first good answer of its health
    route."""

    def __init__(self, stack: Stack, process: subprocess.Popen[bytes], port: int, home: Path) -> None:
        self.stack = stack
        self.process = process
        self.home = home
        self.base = f"http://127.0.0.1:{port}"
        self.url = self.base + stack.path
        self.startup = 0.0

    def processes(self) -> list[psutil.Process]:
        """Every process of the server, the workers too."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu(self) -> float:
        """Seconds on the processor since the start, over all processes."""
        total = 0.0
        for process in self.processes():
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += used.user + used.system
        return total

    def memory(self) -> tuple[float, float]:
        """Resident MB of the largest worker, with the processes it has started, and of everything."""
        try:
            root = psutil.Process(self.process.pid)
            workers = [_resident([worker, *worker.children(recursive=True)]) for worker in root.children()]
        except psutil.NoSuchProcess:
            return 0.0, 0.0
        own = _resident([root])
        return max(workers, default=own), own + sum(workers)

    def settle(self, seconds: float = 20.0) -> None:
        """Wait until what the last load left behind is done, so that it is not charged to the next."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = self.cpu()
            time.sleep(0.25)
            if self.cpu() - before < 0.05:
                return

    def log(self) -> str:
        return (self.home / "server.log").read_text("utf-8", "replace")[-4000:]


@contextmanager
def serving(stack: Stack, material: Material) -> Iterator[Server]:
    """Start a stack in a home of its own and wait until it is ready. Every process of it is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix=f"bench-{stack.name}-"))
    try:
        if stack.settings:  # Perennial's own
            open_home(home, material.bundle)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        variables = {
            **environment(home),
            **stack.settings,
            "BENCH_BUNDLE": str(material.bundle.path),
            "BENCH_ONNX": str(onnx_of(material)),
        }
        with (home / "server.log").open("wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", *stack.command(port)],
                env=variables, cwd=home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        server = Server(stack, process, port, home)
        try:
            _await(server, stack.ready)
            server.startup = time.perf_counter() - began
            yield server
        finally:
            _end(server)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def onnx_of(material: Material) -> Path:
    """The plain graph for ONNX Runtime, made once."""
    path = material.folder / ONNX
    if not path.exists():
        write_onnx(material.bundle.path, path)
    return path


def ask(server: Server, body: bytes, content_type: str) -> dict[str, Any]:
    """One request; ends the program with the server's log when it is not answered well."""
    try:
        answer = httpx.post(server.url, content=body, headers={"Content-Type": content_type}, timeout=60)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        detail = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
        raise SystemExit(f"{server.stack.name} does not answer: {error} {detail}\n{server.log()}") from error
    document = answer.json()
    return dict(document[0] if isinstance(document, list) else document)


class MemoryWatch:
    """The largest memory seen while it is open: `worker` of one worker and what it started, `total` of all, in MB."""

    def __init__(self, server: Server) -> None:
        self.worker = self.total = 0.0
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            worker, total = self._server.memory()
            self.worker = max(self.worker, worker)
            self.total = max(self.total, total)


def _resident(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended just now
            total += process.memory_info().rss / 2**20
    return total


def _await(server: Server, path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client(base_url=server.base, timeout=5) as http:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise SystemExit(f"{server.stack.name} ended at its start:\n{server.log()}")
            with suppress(httpx.TransportError):  # it is not listening yet
                if http.get(path).status_code == 200:
                    return
            time.sleep(0.01)
    raise SystemExit(f"{server.stack.name} is not ready after {_START_SECONDS:g} s:\n{server.log()}")


def _end(server: Server) -> None:
    processes = server.processes()
    server.process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)  # what was started by a process that is gone
    server.process.wait()
