"""`perennial doctor` in a real home: faults are planted one by one, found, and mended by doing what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry, start_http_server
from typer.testing import CliRunner

from commands.doctor import ports, processor, versions
from commands.doctor.examine import examine
from commands.main import app
from commands.settings_file import in_toml
from monitoring.metrics import LedgerCollector
from perennial.bundle import Dataset, Manifest, Pretrained, new_version, upload_bundle, write_bundle
from perennial.graph import PROPERTIES
from perennial.ids import new_id
from perennial.images import InputRule
from perennial.ledger import deployments, models, open_ledger, predictions
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage, sha256_of_file

FILE = "perennial.toml"


class House:
    """A home with a live model, its weights and its training data, and the `perennial.toml` that leads there."""

    def __init__(self, folder: Path, free: list[int], write_image: Callable[..., Path]) -> None:
        self.folder, self.home = folder, folder / "home"
        self.weights, self.photos = folder / "weights.safetensors", folder / "photos"
        self.weights.write_bytes(b"what the network was pretrained to")
        for label in ("ants", "bees"):
            write_image(self.photos / label / "1.png")
        self.write({"home": str(self.home), "serve": {"port": free[0]}, "monitor": {"port": free[1]}})
        self.engine = open_ledger(self.settings.ledger_url)
        self.version = self._publish()

    @property
    def settings(self) -> Settings:
        return load_settings(self.folder / FILE)

    def _publish(self) -> str:
        manifest = Manifest(
            name="default", version=new_version(), created_at=datetime.now(UTC), classes=("ants", "bees"),
            input=InputRule(resize=32, crop=32), backbone="mobilenet_v3_small",
            pretrained=Pretrained(source=str(self.weights), sha256=sha256_of_file(self.weights)),
            strategy="linear_probe", why="a test",
            dataset=Dataset(location=str(self.photos), fingerprint="f", train=2, validation=1, test=1),
            metrics={}, per_class={}, temperature=1.0, properties=PROPERTIES, precisions=("float32",), seed=0,
            packages={},
        )  # fmt: skip
        bundle = write_bundle(self.home / "models", manifest, lambda to: (to / "graph.onnx").write_bytes(b"a graph"))
        models.register(self.engine, bundle, upload_bundle(bundle, Storage(self.settings.blobs_url)))
        deployments.deploy(self.engine, "default", bundle.manifest.version, reason="a test", actor="test")
        return bundle.manifest.version

    def read(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / FILE).read_text("utf-8"))

    def write(self, values: dict[str, Any]) -> None:
        flat = [f"{key} = {in_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for section, inside in values.items():
            if isinstance(inside, dict):
                flat += [f"[{section}]", *(f"{key} = {in_toml(value)}" for key, value in inside.items())]
        (self.folder / FILE).write_text("\n".join(flat) + "\n", "utf-8")

    def set(self, key: str, value: Any) -> None:
        values = self.read()
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
        self.write(values)

    def remove(self, key: str) -> Any:
        values = self.read()
        section, _, name = key.rpartition(".")
        value = (values[section] if section else values).pop(name)
        self.write(values)
        return value

    def predict(self, at: datetime) -> None:
        three = np.full(3, 1 / 3, dtype=np.float32)
        row = Prediction(
            id=new_id(int(at.timestamp() * 1000)), at=at, model_version=self.version, precision="float32",
            label="ants", confidence=0.9, probabilities=three, embedding=three, properties=three, width=8, height=8,
            format="PNG", mode="L", bytes=100, image_digest="0" * 64, image_url=None, source="test", latency_ms=1.0,
        )  # fmt: skip
        predictions.record(self.engine, [row])


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_image: Callable[..., Path]) -> Iterator[House]:
    monkeypatch.delenv("PERENNIAL_TRAIN__THREADS", raising=False)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home" / "bentoml"))
    monkeypatch.chdir(tmp_path)
    made = House(tmp_path, free_ports(2), write_image)
    yield made
    made.engine.dispose()


def examined() -> list[dict[str, str]]:
    """What `perennial doctor --json` finds that is not well. Its exit code must say the same."""
    done = CliRunner().invoke(app, ["doctor", "--json"])
    document = json.loads(done.stdout)
    found = [each for each in document["checks"] if each["level"] in ("problem", "warning")]
    problems = [each for each in found if each["level"] == "problem"]
    assert (done.exit_code, document["ok"], document["problems"]) == (int(bool(problems)), not problems, len(problems))
    assert all(each["mend"] for each in found)
    return found


def only(found: list[dict[str, str]], check: str, *words: str) -> str:
    """There is one finding, of that check, which says these words. Returns how to mend it."""
    assert [each["check"] for each in found] == [check], found
    for word in words:
        assert word in found[0]["found"], found[0]
    return found[0]["mend"]


def is_well() -> None:
    assert examined() == []


def do_set(house: House, mend: str) -> None:
    """Set what the advice says, as it says it."""
    said = re.search(r"\bset ([a-z_.]+) = (.+?) in perennial\.toml", mend)
    assert said is not None, mend
    house.set(said[1], tomllib.loads(f"x = {said[2]}")["x"])


def do_run(mend: str) -> None:
    """Run what the advice says, as it says it: up to an alternative, if it names one."""
    subprocess.run(["bash", "-c", mend.partition("; or ")[0]], check=True, capture_output=True, text=True)


def test_a_house_that_is_well_is_said_to_be_and_left_as_it_is(house: House) -> None:
    before = sorted(house.folder.rglob("*"))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.stdout
    assert "0 problems, 0 warnings" in done.stdout
    for check in ("versions", "settings", "home", "disk", "database", "clock", "storage", "bundle", "weights"):
        assert check in done.stdout
    is_well()
    assert sorted(house.folder.rglob("*")) == before


def test_nothing_there_yet_is_no_problem(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for setting, port in zip(("SERVE", "MONITOR"), free_ports(2), strict=True):
        monkeypatch.setenv(f"PERENNIAL_{setting}__PORT", str(port))
    is_well()
    assert not home.exists()


def test_a_database_that_does_not_answer(house: House, free_port: int) -> None:
    house.set("database_url", f"postgresql://somebody:secret@127.0.0.1:{free_port}/nowhere")
    (house.folder / FILE).chmod(0o600)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert "secret" not in done.stdout
    levels = {each["check"]: each["level"] for each in json.loads(done.stdout)["checks"]}
    assert {levels[check] for check in ("clock", "bundle", "weights", "training data")} == {"not checked"}
    do_set(house, only(examined(), "database", "does not answer"))
    is_well()


def test_a_database_url_that_is_none(house: House) -> None:
    house.set("database_url", "postgres//nowhere")
    do_set(house, only(examined(), "database", "not a database URL"))
    is_well()


def test_a_storage_folder_that_cannot_be_written(house: House) -> None:
    storage = house.home / "storage"
    storage.chmod(0o500)
    command = [sys.executable, "-m", "commands.main", "doctor", "--json"]
    if os.geteuid() == 0:  # whom no permission stops
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and setpriv is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [each for each in json.loads(done.stdout)["checks"] if each["level"] == "problem"]
    do_run(only(found, "storage", "Permission denied"))
    assert done.returncode == 1
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    is_well()


def test_a_storage_folder_that_is_gone(house: House) -> None:
    (house.home / "storage").rename(house.folder / "elsewhere")
    found = examined()
    mend = only(found, "storage", "is gone, with the models")
    assert not (house.home / "storage").exists()  # made anew it would look well
    back = re.search(r"move it back to (\S+);", mend)
    assert back is not None
    (house.folder / "elsewhere").rename(back[1])
    is_well()


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_pretrained_weights_that_are_not_what_they_were(house: House, fault: str) -> None:
    original = house.weights.read_bytes()
    if fault == "gone":
        house.weights.unlink()
    else:
        house.weights.write_bytes(b"other weights")
    mend = only(examined(), "weights", str(house.weights))
    asked = re.search(r"put the file with sha256 (\w{64}) back at (\S+?)(;|$)", mend)
    assert asked is not None
    Path(asked[2]).write_bytes(original)
    assert sha256_of_file(Path(asked[2])) == asked[1]
    is_well()


def test_a_port_that_another_process_has(house: House) -> None:
    port = house.settings.serve.port
    code = (
        f"import socket\ns = socket.create_server(('127.0.0.1', {port}))\nprint(flush=True)\n"
        "while True: s.accept()[0].close()  # it hangs up on whoever asks"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            do_run(only(examined(), "ports", f"serve.port {port}", f"process {other.pid} "))
            other.wait(10)
        finally:
            other.kill()
    is_well()


def test_a_port_that_is_taken_is_exchanged_for_a_free_one(house: House) -> None:
    port = house.settings.monitor.port
    with socket.create_server(("127.0.0.1", port), backlog=1):
        do_set(house, only(examined(), "ports", f"monitor.port {port} is taken"))
        assert house.settings.monitor.port not in (port, house.settings.serve.port)
        is_well()


def test_a_port_of_its_own_watcher_is_well(house: House) -> None:
    metrics = CollectorRegistry()
    metrics.register(LedgerCollector(lambda: house.engine, "default"))
    server, thread = start_http_server(house.settings.monitor.port, addr="127.0.0.1", registry=metrics)
    try:
        assert ports.watcher_at("127.0.0.1", house.settings.monitor.port) == ports.Itself("its watcher")
        is_well()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_unknown_key(house: House) -> None:
    house.set("serve.prot", house.remove("serve.port"))
    mend = only(examined(), "settings", "unknown setting 'serve.prot'")
    said = re.search(rf"in {re.escape(str(house.folder / FILE))} write (\S+) for (\S+),", mend)
    assert said is not None
    house.set(said[1], house.remove(said[2]))
    is_well()


def test_a_value_that_is_not_allowed(house: House) -> None:
    house.set("monitor.alpha", 7)
    mend = only(examined(), "settings", "monitor.alpha", "less than")
    said = re.search(rf"in {re.escape(str(house.folder / FILE))} remove (\S+) \(its default is 0\.0015\)", mend)
    assert said is not None
    house.remove(said[1])
    is_well()


def test_a_file_that_is_no_toml(house: House) -> None:
    path = house.folder / FILE
    path.write_text("name = steel\n" + path.read_text("utf-8"), "utf-8")
    mend = only(examined(), "settings", "cannot be read")
    assert f"write line 1 of {path} as TOML" in mend
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(['name = "default"', *lines[1:]]), "utf-8")
    is_well()


def test_a_variable_that_nobody_reads(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_SERVE__PROT", "3000")
    verb, variable = only(examined(), "settings", "PERENNIAL_SERVE__PROT").split()
    assert verb == "unset"
    monkeypatch.delenv(variable)
    is_well()


def test_values_that_contradict_one_another(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.set("monitor.min_rows", 2000)
    mend = only(examined(), "settings", "no check ever speaks")
    do_set(house, mend)
    is_well()
    monkeypatch.setenv("PERENNIAL_MONITOR__WINDOW", "300")  # it beats the file
    found = examined()
    assert "export PERENNIAL_MONITOR__WINDOW=2000" in found[0]["mend"]


def test_a_bundle_that_was_changed(house: House) -> None:
    stored = house.home / "storage" / "bundles" / "default" / house.version
    (stored / "graph.onnx").write_bytes(b"A graph")
    do_run(only(examined(), "bundle", house.version, "was changed"))
    is_well()
    shutil.rmtree(house.home / "models")
    (stored / "graph.onnx").unlink()
    assert "perennial models rollback" in only(examined(), "bundle", "graph.onnx")


def test_a_disk_that_is_too_small(house: House) -> None:
    house.set("serve.min_free_bytes", 2**60)
    do_set(house, only(examined(), "disk", "no prediction is answered"))
    is_well()


def test_a_disk_on_which_captures_cannot_grow(house: House) -> None:
    house.set("retention.images_bytes", 2**60)
    do_set(house, only(examined(), "disk", "captured images may grow"))
    is_well()


def test_a_ledger_of_a_newer_perennial(house: House) -> None:
    file = house.home / "ledger.sqlite"
    with closing(sqlite3.connect(file)) as ledger, closing(sqlite3.connect(house.folder / "backup.sqlite")) as backup:
        ledger.backup(backup)
    with house.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    house.engine.dispose()
    mend = only(examined(), "database", "newer Perennial", "9999")
    assert mend == f"pip install --upgrade perennial; or put back a backup of {file}"
    os.replace(house.folder / "backup.sqlite", file)
    is_well()


def test_a_ledger_of_an_older_perennial_is_not_migrated_by_looking(house: House) -> None:
    with house.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0006'"))
    assert "migrated" in examined()[0]["found"]
    with house.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "0006"


def test_a_file_that_is_no_ledger(house: House) -> None:
    house.engine.dispose()
    for path in house.home.glob("ledger.sqlite*"):
        path.unlink()
    (house.home / "ledger.sqlite").write_text("these are words, and no database\n" * 100)
    only(examined(), "database", "is no ledger")


def test_a_clock_that_is_behind(house: House) -> None:
    truly = datetime.now(UTC) + timedelta(hours=1)
    house.predict(truly)
    mend = only(examined(), "clock", "newest prediction", "ahead of now")
    assert "sudo timedatectl set-ntp true" in mend  # and the clock goes right:
    found = examine(None, now=lambda: truly)
    assert [each.check for each in found if each.level in ("problem", "warning")] == []


def test_the_clock_of_the_database_server(postgres_url: str, house: House) -> None:
    house.set("database_url", postgres_url)
    open_ledger(postgres_url).dispose()
    found = {each.check: each for each in examine(None)}
    assert (found["database"].level, found["clock"].level) == ("ok", "ok")
    late = {each.check: each for each in examine(None, now=lambda: datetime.now(UTC) - timedelta(minutes=5))}
    assert late["clock"].level == "problem"
    assert "the database server's clock and this machine's differ by 0:05:0" in late["clock"].found


def test_training_data_that_was_moved(house: House) -> None:
    house.photos.rename(house.folder / "pictures")
    mend = only(examined(), "training data", str(house.photos))
    assert "set retrain.data to where it is" in mend
    house.set("retrain.data", str(house.folder / "pictures"))
    is_well()


def test_a_home_that_everybody_may_write(house: House) -> None:
    house.home.chmod(0o777)
    do_run(only(examined(), "home", "everybody"))
    is_well()


def test_a_secret_that_everybody_may_read(house: House) -> None:
    house.set("notify.webhooks", ["https://hooks.example/services/T0/B0/x"])
    (house.folder / FILE).chmod(0o644)
    do_run(only(examined(), "settings", "holds a secret"))
    is_well()


@pytest.mark.parametrize(
    ("asked", "installed", "mend"),
    [
        ("rich>=13", "13.9", None),
        ("rich>=13", None, "pip install 'rich>=13'"),
        ("rich>=13", "12.0", "pip install 'rich>=13'"),
        ('evidently<0.8; extra == "monitor"', None, None),
        ('evidently<0.8; extra == "monitor"', "0.9", "pip install 'evidently<0.8'"),
        ('uvloop>=1; platform_system == "Nowhere"', None, None),
    ],
)
def test_a_package_is_held_against_what_is_asked_for(asked: str, installed: str | None, mend: str | None) -> None:
    found = versions.judge(Requirement(asked), installed)
    assert (found.mend if found is not None else None) == mend


def test_the_features_of_a_processor_are_read_from_what_linux_says() -> None:
    assert processor.features("processor : 0\nflags\t\t: fpu sse2 avx2 amx_bf16\n") == ["avx2", "amx_bf16"]
    assert processor.features("processor : 0\n") == []


def test_more_workers_than_cores_are_too_many(house: House) -> None:
    house.set("serve.workers", 256)
    do_set(house, only(examined(), "processor", "serve.workers is 256"))
    is_well()
