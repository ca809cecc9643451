"""A real `perennial retrain` that is killed at each of its steps: nothing is half done, and the next run finishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from perennial import retention
from perennial.bundle import Bundle, fetch_bundle
from perennial.graph import Graph
from perennial.images import prepare
from perennial.ledger import EventKind, deployments, events, leases, models, open_ledger
from perennial.ledger.connect import writing
from perennial.ledger.requests import open_request
from perennial.ledger.schema import events as events_table
from perennial.ledger.schema import leases as leases_table
from perennial.leftovers import Places
from perennial.settings import Settings, load_settings
from perennial.storage import Storage
from tests.conftest import ROOT
from tests.training.killable_retrain import AROUND_TRAINING, ASKED, MOMENTS
from tests.training.retrain_world import CHOSEN, begin, picture, truth

#: The kills that meet the database, and cost little.
ON_POSTGRESQL: Final = (
    "after it is written that it started",
    "a bundle in the model store, not in the ledger",
    "amid the transaction that deploys",
    "deployed",
)


class Retrains:
    """Starts `perennial retrain` by forking a process that has imported everything."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._output = folder / "output"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.killable_retrain"],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line().startswith("ready")

    def start(
        self,
        moment: str = "",
        *,
        stop: bool = False,
        challenger: Path | None = None,
        arguments: Sequence[str] = ("--if-due",),
        **environment: str,
    ) -> int:
        asked = {
            "moment": moment, "stop": stop, "challenger": str(challenger or ""), "output": str(self._output),
            "arguments": [*arguments], "environment": environment,
        }  # fmt: skip
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """The exit status of the one that was started."""
        return int(self._line())

    def run(
        self,
        moment: str = "",
        *,
        challenger: Path | None = None,
        arguments: Sequence[str] = ("--if-due",),
        **environment: str,
    ) -> int:
        self.start(moment, challenger=challenger, arguments=arguments, **environment)
        return self.end()

    @property
    def said(self) -> str:
        return self._output.read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        assert self._server.wait(60) == 0
        self._server.stdout.close()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


class Place:
    """The home that is retrained in, with its database, and how both were before anything was killed."""

    def __init__(self, home: Path, before: Path, retrains: Retrains, champion: Bundle, requested: int) -> None:
        self.home, self.retrains, self.champion, self.requested = home, retrains, champion, requested
        self._before = before
        self.challenger: Path | None = None
        self.database: Database | None = None
        self.open("")

    def open(self, database_url: str) -> None:
        self.settings: Settings = load_settings(home=self.home, database_url=database_url, **CHOSEN)
        self.storage = Storage(self.settings.blobs_url)
        self.engine = open_ledger(self.settings.ledger_url)

    def reset(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.home)
        shutil.copytree(self._before, self.home, symlinks=True, copy_function=_link_or_copy)
        if self.database is not None:
            self.database.reset()
        self.engine = open_ledger(self.settings.ledger_url)

    def run(self, moment: str = "", **options: Any) -> int:
        return self.retrains.run(moment, **{"challenger": self.challenger, **options}, **environment_of(self.settings))

    @property
    def live(self) -> str:
        return deployments.live(self.engine, "default").version

    def bundles(self) -> list[Bundle]:
        """Those that the ledger names; each is verified, byte for byte."""
        return [
            fetch_bundle(model.bundle_url, model.digest, self.storage, self.settings.cache_path)
            for model in models.all_of(self.engine, "default")
        ]

    def live_answers(self) -> bool:
        [live] = [bundle for bundle in self.bundles() if bundle.manifest.version == self.live]
        output = Graph(live.graph, threads=1).run(prepare(picture("red", 7), live.manifest.input).pixels[None])
        return live.manifest.classes[int(output.probabilities[0].argmax())] == "red"

    def let_the_lease_run_out(self) -> None:
        """That a dead holder's lease runs out is shown in tests/perennial/test_leases.py; here nobody waits for it."""
        assert len(leases.holders(self.engine, "retrain:")) == 1
        with writing(self.engine) as connection:
            connection.execute(sa.update(leases_table).values(until=datetime.now(UTC) - timedelta(seconds=1)))

    def trail(self) -> list[events.Event]:
        return events.after(self.engine, "default", self.requested)

    def unregistered(self) -> list[Path]:
        """Folders and files of bundles that the ledger does not name."""
        known = {model.version for model in models.all_of(self.engine, "default")}
        folders = (self.home / "models", self.home / "bentoml" / "models" / "perennial-default")
        found = [path for folder in folders for path in folder.iterdir() if path.is_dir()]
        stored = self.home / "storage" / "bundles" / "default"
        found += [path for path in stored.iterdir() if path.is_file() or any(path.iterdir())]
        return [path for path in found if path.name not in known]


class Database:
    """A PostgreSQL database that is put back to what it was when this was made."""

    def __init__(self, server: str, name: str) -> None:
        url = sa.make_url(server).set(drivername="postgresql+psycopg")
        self.url = url.set(database=name).render_as_string(hide_password=False)
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        self._name = name
        self._do(f'CREATE DATABASE "{name}"')

    def keep(self) -> None:
        self._do(f'CREATE DATABASE "{self._name}-before" TEMPLATE "{self._name}"')

    def reset(self) -> None:
        self._do(
            f'DROP DATABASE "{self._name}" WITH (FORCE)',
            f'CREATE DATABASE "{self._name}" TEMPLATE "{self._name}-before"',
        )

    def drop(self) -> None:
        self._do(f'DROP DATABASE "{self._name}" WITH (FORCE)', f'DROP DATABASE "{self._name}-before" WITH (FORCE)')

    def _do(self, *statements: str) -> None:
        with self._admin.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))


def environment_of(settings: Settings) -> dict[str, str]:
    home = settings.home_path
    found = {"PERENNIAL_HOME": str(home), "BENTOML_HOME": str(home / "bentoml")}
    found["PERENNIAL_DATABASE_URL"] = settings.database_url
    for section, chosen in CHOSEN.items():
        found |= {f"PERENNIAL_{section}__{key}".upper(): str(value) for key, value in chosen.items()}
    return found


def settle(folder: Path, champion: Bundle, cache: Path, retrains: Retrains, database: Database | None = None) -> Place:
    """A champion, 120 labelled captures of other images, and a request for a retrain."""
    home = folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(home / "bentoml"))
        making = begin(home, champion, cache, database.url if database is not None else "")
        world = next(making)
        shutil.copytree(champion.path, home / "models" / champion.manifest.version)
        world.serve(120, inverted=True, relabel=truth)
        requested = world.request()
        for _ in making:
            pass
    shutil.copytree(home, folder / "before", symlinks=True)
    place = Place(home, folder / "before", retrains, champion, requested)
    if database is not None:
        database.keep()
        place.database = database
        place.open(database.url)
    return place


@pytest.fixture(scope="module")
def retrains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retrains]:
    folder = tmp_path_factory.mktemp("retrains")
    started = Retrains(folder, {"TMPDIR": str(folder)})
    yield started
    started.close()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, champion: Bundle, shared_cache: Path, retrains: Retrains
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("killed")
    made = settle(folder, champion, shared_cache, retrains)
    # One that runs to its end: what it makes stands in for training where the kill is elsewhere.
    assert made.run() == 0, retrains.said
    made.challenger = folder / "challenger"
    shutil.copytree(made.home / "models" / made.live, made.challenger)
    yield made
    made.engine.dispose()


@pytest.fixture(scope="module")
def place_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgres: str, champion: Bundle, shared_cache: Path, place: Place
) -> Iterator[Place]:
    database = Database(postgres, "killed")
    made = settle(tmp_path_factory.mktemp("killed-on-postgresql"), champion, shared_cache, place.retrains, database)
    made.challenger = place.challenger
    yield made
    made.engine.dispose()
    database.drop()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_retrain_that_is_killed_leaves_nothing_half_done_and_the_next_one_finishes(place: Place, moment: str) -> None:
    place.reset()
    champion = place.champion.manifest.version
    killed = place.run(moment, challenger=place.challenger if moment in AROUND_TRAINING else None)
    assert killed == -signal.SIGKILL, place.retrains.said

    deployed = moment == "deployed"
    [*earlier, live] = deployments.history(place.engine, "default")
    assert [one.version for one in earlier] == ([champion] if deployed else [])
    assert (live.version == champion) is not deployed
    assert all(bundle.manifest.name == "default" for bundle in place.bundles())
    assert place.live_answers()
    assert all(event.kind is not EventKind.DEPLOYED for event in place.trail()) is not deployed
    request = open_request(place.engine, "default")
    assert (request is None) if deployed else (request is not None and request.id == place.requested)

    place.let_the_lease_run_out()
    finished = place.run()
    assert finished == (4 if deployed else 0), place.retrains.said
    trail = place.trail()
    started = [event for event in trail if event.kind is EventKind.RETRAIN_STARTED]
    assert {event.caused_by for event in started} == {place.requested}
    *_, gate, went_live = trail
    assert (gate.kind, gate.caused_by) == (EventKind.GATE_PASSED, started[-1].id)
    assert (went_live.kind, went_live.caused_by) == (EventKind.DEPLOYED, gate.id)
    assert [event.kind for event in trail].count(EventKind.DEPLOYED) == 1
    assert place.live == went_live.detail["version"] != champion
    assert leases.holders(place.engine, "retrain:") == []

    days = datetime.now(UTC) + timedelta(days=8)
    places = Places(place.home, place.home / "bentoml")
    retention.prune(place.engine, place.storage, place.settings.retention, window=1000, now=days, places=places)
    assert place.unregistered() == []
    assert len(place.bundles()) == len(models.all_of(place.engine, "default"))


@pytest.mark.parametrize("moment", ON_POSTGRESQL)
def test_so_it_is_on_postgresql(place_on_postgresql: Place, moment: str) -> None:
    test_a_retrain_that_is_killed_leaves_nothing_half_done_and_the_next_one_finishes(place_on_postgresql, moment)


@pytest.mark.parametrize("trigger", ["labels", "schedule", "hand"])
def test_a_retrain_that_is_killed_when_it_has_asked_for_itself_is_taken_up(place: Place, trigger: str) -> None:
    place.reset()
    with writing(place.engine) as connection:  # no check asks
        connection.execute(sa.delete(events_table).where(events_table.c.id == place.requested))
    if trigger == "schedule":  # since yesterday
        noted = events.add(place.engine, "default", EventKind.SCHEDULE_CHANGED, {"schedule": "0 * * * *", "before": ""})
        with writing(place.engine) as connection:
            row = sa.update(events_table).where(events_table.c.id == noted)
            connection.execute(row.values(at=datetime.now(UTC) - timedelta(days=1)))
    asking: dict[str, Any] = {
        "labels": {"PERENNIAL_RETRAIN__EVERY_LABELS": "100"},
        "schedule": {"PERENNIAL_RETRAIN__SCHEDULE": "0 * * * *"},
        "hand": {"arguments": ()},
    }
    assert place.run(ASKED, **asking[trigger]) == -signal.SIGKILL, place.retrains.said

    request = open_request(place.engine, "default")
    assert request is not None
    assert request.detail["trigger"] == trigger
    assert place.live == place.champion.manifest.version
    assert EventKind.RETRAIN_STARTED not in {event.kind for event in events.after(place.engine, "default")}

    place.let_the_lease_run_out()
    assert place.run(**({} if trigger == "hand" else asking[trigger])) == 0, place.retrains.said
    trail = events.after(place.engine, "default", request.id)
    assert [event.kind for event in trail] == ["retrain_started", "gate_passed", "deployed"]
    assert [event.caused_by for event in trail] == [request.id, trail[0].id, trail[1].id]
    assert place.live == trail[-1].detail["version"]
    assert place.run(**asking[trigger] if trigger != "hand" else {}) == 4, place.retrains.said


def test_a_retrain_that_was_stopped_while_another_took_over_does_not_deploy(place: Place) -> None:
    place.reset()
    for moment in ("judged", "after the gate's event"):
        environment = environment_of(place.settings)
        pid = place.retrains.start(moment, stop=True, challenger=place.challenger, **environment)
        wait_until_it_is_stopped(pid)
        place.let_the_lease_run_out()
        with leases.held(place.engine, "retrain:default", 60):
            os.kill(pid, signal.SIGCONT)
            assert place.retrains.end() == 1
        assert "was taken over by another process" in place.retrains.said
    assert [event.kind for event in place.trail()] == [
        "retrain_started", "retrain_failed", "retrain_started", "gate_passed", "retrain_failed",
    ]  # fmt: skip
    assert place.live == place.champion.manifest.version
    request = open_request(place.engine, "default")
    assert request is not None, "it is for the one who took over to answer"
    assert request.id == place.requested


def _link_or_copy(source: str, target: str) -> None:
    # Blobs and bundles are replaced, never written to.
    (shutil.copyfile if "ledger" in Path(source).name else os.link)(source, target)


def wait_until_it_is_stopped(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
