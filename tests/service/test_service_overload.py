"""A full queue: what is said, how little it costs, and that the connection stays good."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import Server, make_world, picture, serving, wait

ORIGIN = "https://shop.example"


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@contextmanager
def full(server: Server) -> Iterator[None]:
    """A request whose body does not come holds the only slot."""
    free = lambda: server.post("/v1/predict", picture("red")).status_code == 200  # noqa: E731
    assert wait(free)
    with connect(server) as holder:
        holder.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
        holder.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it is not refused
            holder.recv(1)
        yield
    assert wait(free)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server that works on one request at a time, and its access log."""
    folder = tmp_path_factory.mktemp("overload")
    world = make_world(folder / "home")
    world.publish_live()
    log = folder / "access.log"
    extra = {
        "PERENNIAL_SERVE__MAX_QUEUE": "1",
        "PERENNIAL_SERVE__CORS_ORIGINS": json.dumps([ORIGIN]),
        "PERENNIAL_SERVE__ACCESS_LOG": str(log),
    }
    with serving(world, extra=extra) as server:
        yield server, log


@pytest.fixture
def server(logged: tuple[Server, Path]) -> Server:
    return logged[0]


def test_a_refusal_says_when_to_come_back(server: Server) -> None:
    with full(server):
        answer = server.post("/v1/predict?top=1", picture("red"), **{"X-Request-ID": "mine-7"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == "mine-7"
    assert answer.json()["type"].endswith(":overloaded")
    assert answer.json()["status"] == 503
    assert "1, are being worked on" in answer.json()["detail"]


def test_every_refusal_has_an_id_of_its_own(server: Server) -> None:
    with full(server):
        ids = [
            server.post("/v1/predict", b"", **headers).headers["x-request-id"]
            for headers in ({}, {}, {"X-Request-ID": "not an id"})
        ]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_a_page_is_told_the_same_with_the_headers_it_needs(server: Server) -> None:
    with full(server):
        plain = server.post("/v1/predict", picture("red"))
        page = server.post("/v1/predict", picture("red"), Origin=ORIGIN)
    assert page.headers["access-control-allow-origin"] == ORIGIN
    assert (page.status_code, page.headers["retry-after"]) == (503, plain.headers["retry-after"])
    assert page.json() == plain.json()


def test_only_predictions_are_refused(server: Server) -> None:
    with full(server):
        assert server.http.get("/livez").status_code == 200
        assert server.http.get("/v1/model").status_code == 200
        assert server.http.get("/v1/predict").status_code == 405
        assert server.post("/v1/predictor", b"").status_code == 404
        batch = server.http.post("/v1/predict/batch", files={"images": ("a", picture("red"))})
    assert batch.status_code == 503
    assert batch.json()["type"].endswith(":overloaded")


def test_refusals_are_counted(server: Server) -> None:
    def counted() -> float:
        found = re.search(
            r'^perennial_rejected_total\{reason="overloaded"\} (\S+)$', server.http.get("/metrics").text, re.M
        )
        return float(found[1]) if found else 0.0

    with full(server):
        before = counted()
        for _ in range(20):
            server.post("/v1/predict", b"")
        assert counted() == before + 20
    page = server.http.get("/metrics").text
    refused = re.search(r'^perennial_requests_total\{route="/v1/predict",status="503"\} (\S+)$', page, re.M)
    assert refused is not None
    assert float(refused[1]) >= 20


def test_the_connection_is_kept_and_its_requests_are_answered_in_turn(server: Server) -> None:
    body = picture("red", size=(400, 300), seed=5, form="PNG")
    predict = b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with full(server), connect(server) as connection:
        connection.sendall(predict + predict + b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" + predict)
        said = b""
        while said.count(b"HTTP/1.1 ") < 4 or not said.endswith(b"}"):
            said += connection.recv(65_536)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"503", b"503", b"200", b"503"]


def test_a_body_in_pieces_of_unknown_length_is_thrown_away(server: Server) -> None:
    with full(server), connect(server) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        assert b" 503 " in connection.recv(65_536)
        for _ in range(50):
            connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")
        connection.sendall(b"0\r\n\r\nGET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_asks_to_close_is_closed(server: Server) -> None:
    with full(server), connect(server) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        said = b""
        while more := connection.recv(65_536):
            said += more
    assert b"\r\nconnection: close\r\n" in said
    assert said.endswith(b"}")


def test_a_client_that_waits_for_100_is_refused_before_it_sends(server: Server) -> None:
    with full(server), connect(server) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_the_access_log_has_refusals_too(logged: tuple[Server, Path]) -> None:
    server, log = logged
    with full(server):
        answer = httpx.post(f"{server.url}/v1/predict", content=b"x", headers={"x-request-id": "look-for-me"})
    assert answer.status_code == 503
    assert wait(lambda: "look-for-me" in log.read_text("utf-8"))
    line = next(json.loads(each) for each in log.read_text("utf-8").splitlines() if "look-for-me" in each)
    assert line["status"] == 503
