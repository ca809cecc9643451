"""A challenger beside the champion on a real server: in the shadow, with a share of the traffic, and gone again."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import pytest
import sqlalchemy as sa
from onnx import helper, numpy_helper

from perennial.ledger import EventKind, deployments, rollouts
from perennial.ledger.rollouts import Rollout, Stage
from perennial.storage import sha256
from service.inference_wire import Job, Split
from tests.service.conftest import (
    COLOURS,
    Clients,
    Server,
    World,
    environment,
    graph_bytes,
    make_world,
    picture,
    serving,
    wait,
)
from tests.service.test_service_inference import processes_of

#: Answers wherever the champion does, but always with another colour.
WRONG = ("green", "blue", "red")
_SWAP_SECONDS = 5.0

Begin = Callable[..., Rollout]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = make_world(tmp_path_factory.mktemp("rollout") / "home")
    world.publish_live()
    extra = {"PERENNIAL_ROLLOUT__SHADOW_SHARE": "1", "PERENNIAL_ROLLOUT__SHADOW_BUDGET": "1"}
    with serving(world, extra=extra) as server:
        yield server


@pytest.fixture
def begin(server: Server) -> Iterator[Begin]:
    """Starts a rollout of a version beside the live one; it is stopped after the test."""
    world = server.world

    def start(challenger: str, *stages: Stage) -> Rollout:
        live = deployments.live(world.engine, world.settings.name).version
        rollout = rollouts.start(
            world.engine,
            world.settings.name,
            champion=live,
            challenger=challenger,
            stages=stages,
            reason="a test",
            actor="test",
        )
        assert wait(lambda: f"{challenger} is at stage" in server.output() or running(world) is None), server.output()
        return rollout

    yield start
    rollout = running(world)
    if rollout is not None:
        rollouts.stop(world.engine, rollout, why="the test is over", actor="test")
        assert wait(lambda: f"the rollout of version {rollout.challenger} has ended" in server.output())


def running(world: World) -> Rollout | None:
    return rollouts.running(world.engine, world.settings.name)


def versions(server: Server, images: Sequence[bytes]) -> list[str]:
    return [server.predict(image)["model"]["version"] for image in images]


def shadow_rows(world: World) -> list[sa.Row[tuple[object, ...]]]:
    with world.engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT * FROM shadow_answers")))


def test_an_image_stays_in_its_share_and_in_every_larger_one() -> None:
    digests = [sha256(f"{number}".encode()) for number in range(4000)]
    small, large, other = (Split.of(7, salt, share) for salt, share in ((1, 0.1), (1, 0.5), (2, 0.1)))
    inside = {digest for digest in digests if small.takes(digest)}
    assert abs(len(inside) - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)
    assert inside < {digest for digest in digests if large.takes(digest)}
    elsewhere = {digest for digest in digests if other.takes(digest)}
    assert len(inside & elsewhere) < 100  # another rollout draws anew
    assert all(Split.of(7, 1, 1.0).takes(digest) for digest in digests)
    assert not any(Split.of(7, 1, 0.0).takes(digest) for digest in digests)
    for split in (None, small, Split.of(7, 2**63, 1.0)):
        assert Job.unpack(Job(3, 5, 8, split).pack()) == Job(3, 5, 8, split)


def test_a_shadow_is_recorded_and_never_seen(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(WRONG, gain=1.0)
    begin(challenger, "shadow", 0.5)
    answers = [server.predict(picture(COLOURS[seed % 2], seed=seed)) for seed in range(30)]
    assert {answer["model"]["version"] for answer in answers} == {champion}
    assert wait(lambda: len(shadow_rows(world)) >= 5), server.output()
    given = {answer["prediction_id"]: answer["label"] for answer in answers}
    rows = [row for row in shadow_rows(world) if row.prediction_id in given]
    for row in rows:
        assert row.version == challenger
        assert row.label == WRONG[COLOURS.index(given[row.prediction_id])]
        assert 1 / 3 < row.confidence < 0.6  # its gain is low; the champion is surer
        assert row.latency_ms > 0
        assert row.champion_ms > 0
    text = server.http.get("/metrics").text
    assert 'perennial_shadow_total{outcome="differed"}' in text
    assert f'perennial_rollout_share{{version="{challenger}"}} 0.0' in text
    assert world.latest(challenger) == []


def test_a_canary_answers_its_share_and_the_same_images_always(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(gain=5.0)
    rollout = begin(challenger, 0.3, 0.6)
    images = [picture(COLOURS[seed % 3], seed=seed) for seed in range(200)]
    asked = versions(server, images)
    assert set(asked) == {champion, challenger}
    assert abs(asked.count(challenger) - 60) < 4 * math.sqrt(200 * 0.3 * 0.7)
    assert versions(server, images[:20]) == asked[:20]
    assert asked == [(champion, challenger)[Split.of(1, rollout.started, 0.3).takes(sha256(image))] for image in images]
    # What is recorded is what was answered, and by whom.
    assert {row.prediction.model_version for row in world.latest(challenger)} == {challenger}
    assert len({row.prediction.image_digest for row in world.latest(challenger)}) == asked.count(challenger)
    assert world.latest(challenger)[0].prediction.image_url is not None

    rollouts.advance(world.engine, rollout, why="fine", actor="test", detail={})
    share = f'perennial_rollout_share{{version="{challenger}"}} 0.6'
    assert wait(lambda: share in server.http.get("/metrics").text)
    later = versions(server, images)
    assert abs(later.count(challenger) - 120) < 4 * math.sqrt(200 * 0.6 * 0.4)
    for before, after in zip(asked, later, strict=True):
        assert after == challenger or before == champion

    # All of the traffic: the challenger that is loaded already takes over.
    deployments.deploy(world.engine, world.settings.name, challenger, reason="done", actor="test", replaces=champion)
    assert server.serves(challenger)
    assert set(versions(server, images[:20])) == {challenger}


def test_a_rollback_amid_a_canary_is_live_within_the_swap_time(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(gain=6.0)
    begin(challenger, 0.9)
    stays_in = next(image for image in map(_blue, range(50)) if versions(server, [image]) == [challenger])
    with Clients(server, 2, image=stays_in) as clients:
        assert wait(lambda: len(clients.answers) > 20)
        deployments.roll_back(world.engine, world.settings.name, reason="it looks wrong", actor="test")
        began = time.monotonic()
        assert wait(lambda: clients.answers[-1]["model"]["version"] == champion)
        assert time.monotonic() - began < _SWAP_SECONDS
        answered = len(clients.answers)
        assert wait(lambda: len(clients.answers) > answered + 20)
    assert clients.failures == []
    assert {answer["model"]["version"] for answer in clients.answers[answered:]} == {champion}
    assert deployments.live(world.engine, world.settings.name).version == champion
    assert world.events(EventKind.ROLLOUT_STOPPED)[-1].detail["version"] == challenger


def test_a_challenger_that_cannot_be_loaded_stops_its_rollout(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(gain=7.0)
    world.corrupt(challenger)
    begin(challenger, "shadow")
    assert running(world) is None
    stopped = world.events(EventKind.ROLLOUT_STOPPED)[-1]
    assert stopped.detail["version"] == challenger
    assert "cannot be loaded" in stopped.detail["why"]
    assert versions(server, [picture("red")]) == [champion]


def test_where_a_challenger_fails_the_champion_answers(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(graph=not_finite())
    begin(challenger, 0.9)
    images = [picture("red", seed=seed) for seed in range(300, 320)]
    assert set(versions(server, images)) == {champion}
    assert wait(lambda: running(world) is None)  # nobody had to look
    assert (
        "failed on 10 images: its probabilities are not finite"
        in world.events(EventKind.ROLLOUT_STOPPED)[-1].detail["why"]
    )
    assert wait(lambda: any(row.version == challenger for row in shadow_rows(world)))
    faults = [row for row in shadow_rows(world) if row.version == challenger]
    assert all("not finite" in row.fault for row in faults)
    assert all(row.label is None for row in faults)
    assert world.latest(challenger) == []


def test_feedback_stops_a_challenger_that_answers_wrong(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(WRONG)
    begin(challenger, 0.5)
    images = [(picture(COLOURS[seed % 3], seed=seed), COLOURS[seed % 3]) for seed in range(400, 460)]
    answers = [(server.predict(image), label) for image, label in images]
    feedback = [{"prediction_id": answer["prediction_id"], "label": label} for answer, label in answers]
    given = server.http.post("/v1/feedback", json=feedback)
    assert given.json()["accepted"] == len(images)

    command = [sys.executable, "-m", "commands.main", "rollout", "advance", "--json"]
    done = subprocess.run(command, env=environment(world), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 11, done.stderr
    assert "the champion is better beyond chance" in json.loads(done.stdout)["why"]
    assert wait(lambda: set(versions(server, [image for image, _ in images[:20]])) == {champion})


def test_a_challenger_that_takes_the_inference_process_down_is_stopped(server: Server, begin: Begin) -> None:
    world = server.world
    begin(world.publish(gain=8.0), 0.2)
    for _ in range(2):
        (process,) = processes_of(server)
        process.kill()
        assert wait(lambda gone=process: not gone.is_running() and len(processes_of(server)) == 1)
        assert wait(lambda: server.http.get("/readyz").status_code == 200)
    assert wait(lambda: running(world) is None)
    assert "inference process ended" in world.events(EventKind.ROLLOUT_STOPPED)[-1].detail["why"]
    server.predict(picture("red"))


def test_images_that_cannot_be_read_count_for_both_by_their_shares(server: Server, begin: Begin) -> None:
    world = server.world
    champion = deployments.live(world.engine, world.settings.name).version
    challenger = world.publish(gain=9.0)
    begin(challenger, 0.5)
    for _ in range(40):
        assert server.post("/v1/predict", b"no image").status_code == 400

    def refused() -> dict[str, int]:
        with world.engine.connect() as connection:
            rows = connection.execute(
                sa.text("SELECT model_version, sum(images) AS images FROM rejected_images GROUP BY model_version")
            )
            return {row.model_version: row.images for row in rows}

    assert wait(lambda: sum(refused().values()) >= 40)
    assert refused()[challenger] > 5
    assert refused()[champion] > 5


def not_finite() -> bytes:
    """A graph that takes the root of a negative number on a bright image, but not on the black one of the warm-up."""
    model = onnx.load_from_string(graph_bytes(1.0))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.input[0] = "roots"
    at = list(model.graph.node).index(softmax)
    model.graph.node.insert(at, helper.make_node("Sqrt", ["differences"], ["roots"]))
    model.graph.node.insert(at, helper.make_node("Sub", ["half", "logits"], ["differences"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    return model.SerializeToString()


def _blue(seed: int) -> bytes:
    return picture("blue", seed=seed)
