"""The live model changes while the server answers."""

from __future__ import annotations

import time

from perennial.ledger.events import EventKind
from tests.service.conftest import Clients, World, picture, serving, wait


def test_a_swap_under_load_fails_no_request_and_mixes_no_versions(world: World) -> None:
    first = world.publish_live()
    second = world.publish(("cyan", "magenta", "yellow"))
    with serving(world) as server:
        with Clients(server) as clients:
            assert wait(lambda: len(clients.answers) > 100)
            began = time.monotonic()
            world.deploy(second)
            assert wait(lambda: bool(clients.answers) and clients.answers[-1]["model"]["version"] == second, 10)
            took = time.monotonic() - began
            answered = len(clients.answers)
            assert wait(lambda: len(clients.answers) > answered + 100)
        text = server.http.get("/metrics").text
    assert clients.failures == []
    assert took < 5
    assert {answer["model"]["version"] for answer in clients.answers} == {first, second}
    for answer in clients.answers:
        classes = world.classes[answer["model"]["version"]]
        assert answer["label"] in classes
        assert {entry["label"] for entry in answer["top"]} == set(classes)
    assert world.rows() == len(clients.answers)
    assert 'perennial_swaps_total{outcome="done"} 2.0' in text
    assert f'perennial_live_model_info{{precision="float32",runtime="openvino",version="{first}"}} 0.0' in text
    assert f'perennial_live_model_info{{precision="float32",runtime="openvino",version="{second}"}} 1.0' in text


def test_a_corrupt_bundle_leaves_the_old_model_serving_and_is_recorded_once(world: World) -> None:
    first = world.publish_live()
    broken = world.publish(("cyan", "magenta", "yellow"))
    world.corrupt(broken)
    with serving(world, extra={"PERENNIAL_SERVE__WORKERS": "2"}) as server:
        world.deploy(broken)
        assert wait(lambda: bool(world.events(EventKind.SWAP_FAILED)))
        time.sleep(2.5)  # several looks and tries of both workers
        assert {server.predict(picture("red"))["model"]["version"] for _ in range(10)} == {first}
        assert 'perennial_swaps_total{outcome="failed"}' in server.http.get("/metrics").text
        failed = world.events(EventKind.SWAP_FAILED)
        assert len(failed) == 1, failed
        assert failed[0].detail["version"] == broken
        assert failed[0].detail["keeps"] == first
        assert "sha256" in failed[0].detail["why"]
        # Another deployment is taken as if nothing had been.
        third = world.publish_live(("one", "two", "three"))
        assert wait(lambda: server.predict(picture("red"))["model"]["version"] == third)


def test_a_server_that_starts_on_a_broken_model_serves_the_one_before(world: World) -> None:
    first = world.publish_live()
    broken = world.publish(("cyan", "magenta", "yellow"))
    world.corrupt(broken)
    world.deploy(broken)
    with serving(world) as server:
        assert server.predict(picture("red"))["model"]["version"] == first
        (failed,) = world.events(EventKind.SWAP_FAILED)
        assert (failed.detail["version"], failed.detail["keeps"]) == (broken, first)


def test_a_server_without_a_model_lives_and_becomes_ready_when_one_is_deployed(world: World) -> None:
    with serving(world, ready=False) as server:
        assert server.http.get("/livez").status_code == 200
        assert server.http.get("/readyz").status_code == 503
        for answer in (server.post("/v1/predict", picture("red")), server.http.get("/v1/model")):
            assert answer.status_code == 503
            assert answer.json()["type"].endswith(":no-live-model")
            assert "perennial train" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) > 0
        assert "No model is live yet" in server.output()
        version = world.publish_live()
        assert wait(lambda: server.http.get("/readyz").status_code == 200)
        assert server.predict(picture("blue"))["model"]["version"] == version
