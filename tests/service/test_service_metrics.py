"""Every request is counted once, whoever answers it, and timed if it was not refused."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from tests.service.conftest import Server, make_world, picture, serving, wait


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """Values by name and the values of the labels."""
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_requests_are_counted_by_route_and_status_over_all_workers(tmp_path: Path) -> None:
    world = make_world(tmp_path / "home")
    world.publish_live()
    with serving(world, extra={"PERENNIAL_SERVE__WORKERS": "2"}) as server:
        begun = samples(server)
        assert begun["perennial_requests_total", "/v1/predict", "500"] == 0
        for seed in range(20):
            server.http.post("/v1/predict?top=1", content=picture("red", seed=seed))
        server.post("/v1/predict", b"no image")
        server.http.get("/v1/events?after=0")
        server.http.post("/v1/models/20260101-000000-00000/promote", json={"reason": "x"})
        server.http.get("/no/such/path")
        server.http.get("/")
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        expected = {
            ("/v1/predict", "200"): 20,
            ("/v1/predict", "400"): 1,
            ("/v1/events", "200"): 1,
            ("/v1/models/{version}/promote", "404"): 1,
            ("other", "404"): 1,
            ("/", "200"): 1,
            ("other", "400"): 1,
        }

        def counted() -> bool:
            found = samples(server)
            return {key: found.get(("perennial_requests_total", *key)) for key in expected} == expected

        assert wait(counted, 5), samples(server)
        found = samples(server)
        assert found["perennial_request_seconds_count", "/v1/predict"] == 20
        assert ("perennial_request_seconds_count", "other") not in found
        assert 0 < found["perennial_request_seconds_sum", "/v1/predict"] < 20
        assert found["perennial_queue_limit",] == 2 * 256
        # A worker tells of its queue every so often, so what it had a moment ago may be seen.
        assert wait(lambda: samples(server)["perennial_queue_images",] == 0, 5)
        assert found["perennial_disk_free_bytes",] > found["perennial_disk_min_free_bytes",] == 256 * 2**20
        assert 0 <= found["perennial_recorder_behind_seconds",] < 10
        assert found["perennial_swaps_total", "failed"] == 0
        seen = {label for name, *labels in found if name == "bentoml_service_request_total" for label in labels}
        assert "/v1/events" in seen
        assert "/v1/predict" not in seen, "docs/metrics.md says that BentoML's own metrics do not see it"


def test_what_waits_for_the_ledger_is_said_to_be_behind(tmp_path: Path) -> None:
    world = make_world(tmp_path / "home")
    world.publish_live()
    with serving(world) as server:
        with closing(sqlite3.connect(world.home / "ledger.sqlite", isolation_level=None)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")  # nobody else can write
            server.predict(picture("red"))
            assert wait(lambda: samples(server)["perennial_recorder_behind_seconds",] > 1, 15)
        assert wait(lambda: samples(server)["perennial_recorder_behind_seconds",] < 1, 15)


def test_a_disk_that_cannot_be_asked_has_no_room(tmp_path: Path) -> None:
    assert metrics.free_bytes(tmp_path) > 0
    assert metrics.free_bytes(tmp_path / "nothing here") == 0


def test_what_is_refused_or_left_is_not_timed() -> None:
    waiting = metrics.request_seconds._waiting
    waiting.clear()
    for status in (200, 302, 400, 404, 429, 500, 503, 504, None):
        metrics.answered("/x", status, 1.0)
    assert len(waiting) == 4
    waiting.clear()
    metrics.requests._waiting.clear()
