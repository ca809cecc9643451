"""Many swaps, and several workers: every answer is of one version throughout, and all workers come to the same one."""

from __future__ import annotations

import math
import time

import httpx
import pytest
import sqlalchemy as sa

from tests.service.conftest import PLAIN, Clients, World, picture, serving, wait

_SWAPS = 50
_SWAP_INTERVAL = 0.2
#: To load, verify and warm up a bundle this small, on a machine that is busy with the tests.
_LOAD_SECONDS = 5.0


def publish(world: World, number: int) -> str:
    """A version with classes and probabilities of its own: it calls a red image `NUMBER red`."""
    return world.publish([f"{number} {colour}" for colour in ("red", "green", "blue")], gain=gain_of(number))


def gain_of(number: int) -> float:
    return 0.5 * (1 + number)


def expected(number: int) -> float:
    """What that version must say of a purely red image: the softmax of (gain, 0, 0)."""
    return math.exp(gain_of(number)) / (math.exp(gain_of(number)) + 2)


def test_fifty_swaps_under_load_fail_no_request_and_mix_no_versions(world: World) -> None:
    versions = [publish(world, number) for number in range(5)]
    number_of = {version: number for number, version in enumerate(versions)}
    world.deploy(versions[0])
    with serving(world, extra={"PERENNIAL_SERVE__SWAP_INTERVAL": "0.02"}) as server:
        with Clients(server, image=picture("red", "PNG")) as senders:
            for swap in range(1, _SWAPS + 1):
                version = versions[swap % len(versions)]
                world.deploy(version)
                assert wait(
                    lambda version=version: bool(senders.answers) and senders.answers[-1]["model"]["version"] == version
                ), f"swap {swap}: {server.output()[-2000:]}"
        assert senders.failures == []
        swaps = f'perennial_swaps_total{{outcome="done"}} {_SWAPS + 1}.0'
        assert swaps in server.http.get("/metrics").text

        answers = senders.answers
        assert {answer["model"]["version"] for answer in answers} == set(versions)
        for answer in answers:
            number = number_of[answer["model"]["version"]]
            assert answer["label"] == f"{number} red"
            assert {entry["label"] for entry in answer["top"]} == set(world.classes[answer["model"]["version"]])
            assert answer["confidence"] == pytest.approx(expected(number), abs=1e-3)
        assert wait(lambda: world.rows() == len(answers))
    # What is recorded is what was answered.
    with world.engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT id, model_version, label, confidence FROM predictions")).all()
    recorded = {row.id: (row.model_version, row.label) for row in rows}
    assert recorded == {answer["prediction_id"]: (answer["model"]["version"], answer["label"]) for answer in answers}
    for row in rows:
        assert row.confidence == pytest.approx(expected(number_of[row.model_version]), abs=1e-3)


def test_all_workers_come_to_a_new_version_in_time_and_the_metrics_say_so(world: World) -> None:
    versions = [publish(world, number) for number in range(3)]
    world.deploy(versions[0])
    extra = {"PERENNIAL_SERVE__WORKERS": "2", "PERENNIAL_SERVE__SWAP_INTERVAL": str(_SWAP_INTERVAL)}
    with serving(world, extra=extra) as server:

        def served() -> dict[str, float]:
            """Version -> 1 while any worker serves it."""
            lines = server.http.get("/metrics").text.splitlines()
            found = [line for line in lines if line.startswith("perennial_live_model_info{")]
            return {line.partition('version="')[2].partition('"')[0]: float(line.split()[-1]) for line in found}

        def only(version: str) -> bool:
            return [one for one, value in served().items() if value == 1] == [version]

        def swapped(times: int) -> bool:
            return f'perennial_swaps_total{{outcome="done"}} {times}.0' in server.http.get("/metrics").text

        assert wait(lambda: swapped(2))  # both have started
        assert only(versions[0])
        with Clients(server, 2, image=picture("red", "PNG")) as senders:
            for version in versions[1:]:
                began = time.monotonic()
                world.deploy(version)
                assert wait(lambda version=version: only(version))
                assert time.monotonic() - began < _SWAP_INTERVAL + _LOAD_SECONDS
                for _ in range(20):  # on connections of their own, which the workers share among them
                    answer = httpx.post(
                        f"{server.url}/v1/predict", content=picture("red", "PNG"), timeout=30, verify=PLAIN
                    )
                    assert answer.json()["model"]["version"] == version
        assert senders.failures == []
        # Each of the two workers came to each of the three.
        assert swapped(6)
