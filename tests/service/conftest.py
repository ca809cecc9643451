"""Real servers on a model small enough to be read at a glance: an image's class is its strongest colour."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
import sqlalchemy as sa
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from perennial.bundle import Dataset, Estimate, Finding, Manifest, Pretrained, new_version, upload_bundle, write_bundle
from perennial.graph import PROPERTIES
from perennial.images import InputRule
from perennial.ledger import deployments, events, models, open_ledger, predictions
from perennial.ledger.events import Event, EventKind
from perennial.ledger.predictions import LabelledPrediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage

COLOURS = ("red", "green", "blue")
SIDE = 32
COMMAND = ("-m", "commands.main", "serve")
#: An image of the trainer's, which nobody who calls the service is told of.
PRIVATE = "/somewhere/private/1.jpg"
#: What `verify` is for HTTP without TLS: reading all certificates for each client takes longer than most answers.
PLAIN = False


def graph_bytes(gain: float = 10.0, classes: int = 3) -> bytes:
    """uint8 [N, 32, 32, 3] -> the softmax of `gain` times each channel's mean, four mixtures, seven statistics. Of more
    than three classes each third one is another name of the same colour."""

    def constant(name: str, values: Any, kind: type = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, dtype=kind), name)

    mixing = [[1, 0, 0, 1], [0, 1, 0, -1], [0, 0, 1, 0]]
    statistics = np.full((3, 7), 1 / 3)
    statistics[:, 4:] = np.eye(3)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "white"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "plane"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "naming"], ["named"]),
        helper.make_node("Mul", ["named", "gain"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("MatMul", ["means", "mixing"], ["embedding"]),
        helper.make_node("MatMul", ["means", "statistics"], ["properties"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("properties", TensorProto.FLOAT, ["n", 7]),
        ],
        [
            constant("white", 255.0),
            constant("gain", gain),
            constant("naming", np.resize(np.eye(3), (classes, 3)).T),
            constant("plane", [1, 2], np.int64),
            constant("mixing", mixing),
            constant("statistics", statistics),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclass(slots=True)
class World:
    """A home with its ledger and storage, and a way to put models in it."""

    home: Path
    settings: Settings
    engine: sa.Engine
    storage: Storage
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def publish(self, classes: Sequence[str] = COLOURS, gain: float = 10.0, graph: bytes | None = None) -> str:
        """Write, upload and register a bundle, of that graph or of one with that gain; returns its version."""
        manifest = Manifest(
            name=self.settings.name,
            version=new_version(),
            created_at=datetime.now(UTC),
            classes=tuple(classes),
            input=InputRule(resize=SIDE, crop=SIDE),
            backbone="mobilenet_v3_small",
            pretrained=Pretrained(source="/home/somebody/weights/roots.safetensors", sha256="0" * 64),
            strategy="linear_probe",
            why="colours need no more",
            dataset=Dataset(location="/somewhere/private", fingerprint="f", train=2, validation=1, test=1),
            metrics={"accuracy": Estimate(value=0.9, low=0.8, high=0.95)},
            per_class={},
            temperature=1.0,
            properties=PROPERTIES,
            precisions=("float32",),
            findings=(Finding(kind="near_duplicates", message=f"such as {PRIVATE}", locations=(PRIVATE,)),),
            seed=0,
            packages={},
        )

        def fill(folder: Path) -> None:
            (folder / "graph.onnx").write_bytes(graph or graph_bytes(gain, len(classes)))

        bundle = write_bundle(self.home / "made", manifest, fill)
        models.register(self.engine, bundle, upload_bundle(bundle, self.storage))
        self.classes[manifest.version] = manifest.classes
        return manifest.version

    def deploy(self, version: str, reason: str = "a test") -> None:
        deployments.deploy(self.engine, self.settings.name, version, reason=reason, actor="test")

    def publish_live(self, classes: Sequence[str] = COLOURS) -> str:
        version = self.publish(classes)
        self.deploy(version)
        return version

    def corrupt(self, version: str) -> None:
        """Change one byte of a stored graph."""
        path = self.home / "storage" / "bundles" / self.settings.name / version / "graph.onnx"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def events(self, *kinds: EventKind) -> list[Event]:
        return events.after(self.engine, self.settings.name, kinds=list(kinds) or None)

    def settle(self, seconds: float = 20.0) -> None:
        """Wait until nothing waits in the journals of the workers on this home."""
        assert wait(lambda: not any(self.journals()), seconds), "the journals were not emptied"

    def journals(self) -> list[int]:
        """The size of every journal segment, in bytes."""
        sizes = []
        for path in (self.home / "journal").rglob("*.journal"):
            with contextlib.suppress(FileNotFoundError):  # emptied and deleted just now
                sizes.append(path.stat().st_size)
        return sizes

    def latest(self, version: str, limit: int = 1000) -> list[LabelledPrediction]:
        """The version's rows, once all that were answered are in the ledger."""
        self.settle()
        return predictions.latest(self.engine, version, limit)

    def rows(self, table: str = "predictions") -> int:
        """How many rows there are, once all that were answered are in the ledger."""
        self.settle()
        with self.engine.connect() as connection:
            return int(connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


@dataclass(slots=True)
class Server:
    """A running `perennial serve`."""

    world: World
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    http: httpx.Client

    def post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        return self.http.post(path, content=content, headers=headers)

    def predict(self, image: bytes) -> dict[str, Any]:
        answer = self.http.post("/v1/predict", content=image)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def serves(self, version: str, seconds: float = 15.0) -> bool:
        """Waits until the server says that it serves this version."""
        return wait(lambda: self.http.get("/v1/model").json().get("version") == version, seconds)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> set[int]:
        """The process ids of the workers; BentoML has helpers of its own, which come and go."""
        return {child.pid for child in self.children() if "worker" in " ".join(child.cmdline())}

    def kill(self) -> None:
        """SIGKILL to every process of the server at once, the workers first."""
        processes = [*self.children(), psutil.Process(self.process.pid)]
        for process in processes:
            process.kill()
        self.process.wait(10)
        psutil.wait_procs(processes, timeout=10)

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")


class Clients:
    """Threads that send without a pause and keep every answer: `image`, or each a picture of its own."""

    def __init__(self, server: Server, threads: int = 4, *, image: bytes | None = None) -> None:
        self._server = server
        self._image = image
        self._stop = threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._send, args=(seed,)) for seed in range(threads)]

    def _send(self, seed: int) -> None:
        image = self._image or picture(("red", "green", "blue")[seed % 3], seed=seed)
        with httpx.Client(base_url=self._server.url, timeout=30, verify=PLAIN) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/v1/predict", content=image)
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers.append(answer.json())
                else:
                    self.failures.append(answer.text)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def wait(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def make_world(home: Path, *, database_url: str = "", name: str = "colours") -> World:
    settings = load_settings(home=home, database_url=database_url, name=name)
    return World(home, settings, open_ledger(settings.ledger_url), Storage(settings.blobs_url))


def environment(world: World, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PERENNIAL_", "BENTOML_"))}
    return {
        **kept,
        "PERENNIAL_NAME": world.settings.name,
        "PERENNIAL_HOME": str(world.home),
        "PERENNIAL_SERVE__SWAP_INTERVAL": "0.2",
        "BENTOML_DO_NOT_TRACK": "True",
        **({"PERENNIAL_DATABASE_URL": world.settings.database_url} if world.settings.database_url else {}),
        **(extra or {}),
    }


@contextmanager
def serving(
    world: World,
    *,
    extra: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
    ready: bool = True,
    folder: Path | None = None,
    port: int = 0,
) -> Iterator[Server]:
    """A real server process on that port, or on a free one; every process of it is gone afterwards."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    log = world.home / f"server-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            env=environment(world, extra),
            cwd=folder or world.home,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=30) as http:
        server = Server(world, url, process, log, http)
        try:
            assert wait(lambda: _answers(http, "/readyz" if ready else "/livez", process), 45), server.output()
            yield server
        finally:
            try:
                if process.poll() is None:
                    process.terminate()
                    process.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
            finally:
                world.engine.dispose()


def _answers(http: httpx.Client, path: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the server ended"
    try:
        return http.get(path, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def picture(colour: str, form: str = "JPEG", size: tuple[int, int] = (80, 60), seed: int | None = None) -> bytes:
    """An image of one colour; with a seed, one of its own kind with other bytes."""
    image = Image.new("RGB", size, colour)
    if seed is not None:
        noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 3))
        image = Image.fromarray(np.clip(np.asarray(image) * 0.8 + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path / "home")
    yield world
    world.engine.dispose()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only ask; its limits are small enough to be reached."""
    home = tmp_path_factory.mktemp("shared") / "home"
    world = make_world(home)
    world.publish_live()
    with serving(world, extra={"PERENNIAL_SERVE__MAX_BATCH": "20"}) as server:
        yield server
    shutil.rmtree(home, ignore_errors=True)
