"""Promoting and rolling back over HTTP, and who may."""

from __future__ import annotations

import inspect

import pytest
from starlette.requests import Request

from perennial.errors import Forbidden, InvalidParameter, PerennialError, Unauthorized
from perennial.ledger import deployments
from perennial.ledger.events import EventKind
from service import admin
from tests.service.conftest import World, picture, serving


def call(client: str = "127.0.0.1", **headers: str) -> Request:
    given = {"host": "127.0.0.1:3000", "content_type": "application/json", **headers}
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/rollback",
            "query_string": b"",
            "client": (client, 4000),
            "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in given.items()],
        }
    )


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_without_a_key_this_machine_may(client: str) -> None:
    assert client in admin.authorize(call(client), "")


@pytest.mark.parametrize(
    "request_",
    [
        call("10.0.0.7"),
        call("::ffff:10.0.0.7"),
        call("testclient"),
        call(x_forwarded_for="127.0.0.1"),
        call(forwarded="for=127.0.0.1"),
        call(x_real_ip="127.0.0.1"),
        call(x_forwarded_for=""),
        call(host="rebound.example.org"),
    ],
    ids=[
        "other machine",
        "other machine by IPv6",
        "no address",
        "proxy",
        "proxy 2",
        "proxy 3",
        "proxy that hides",
        "DNS rebinding",
    ],
)
def test_without_a_key_nobody_else_may(request_: Request) -> None:
    with pytest.raises(Forbidden, match="admin_key"):
        admin.authorize(request_, "")


@pytest.mark.parametrize(
    "host",
    ["", "a{b}.evil.example", 'a"b.evil.example', "localhost@evil.example", "evil.example@localhost",
     "localhost/@evil.example", "[::1", "[x]", "localhost:abc", "localhost:99999999", "127.0.0.1.evil.example"],
)  # fmt: skip
def test_a_host_that_is_not_plainly_this_machine_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        admin.authorize(call(host=host, scheme="http"), "")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1", "[::1]:3000"])
def test_this_machine_goes_by_these_names(host: str) -> None:
    assert admin.authorize(call(host=host), "") == "http 127.0.0.1"


@pytest.mark.parametrize(
    ("authorization", "error"),
    [
        (None, Unauthorized),
        ("", Unauthorized),
        ("Bearer", Unauthorized),
        ("Bearer wrong", Unauthorized),
        ("Bearer kéy", Unauthorized),
        ("Basic sesame", Unauthorized),
        ("Bearer sesame", None),
        ("bearer sesame", None),
    ],
)
def test_with_a_key_everybody_needs_it(authorization: str | None, error: type[PerennialError] | None) -> None:
    request = call("127.0.0.1") if authorization is None else call("10.0.0.7", authorization=authorization)
    if error is None:
        assert admin.authorize(request, "sesame")
    else:
        with pytest.raises(error):
            admin.authorize(request, "sesame")


def test_a_page_in_a_browser_cannot_send_an_admin_call() -> None:
    with pytest.raises(InvalidParameter, match="application/json"):
        admin.authorize(call(content_type="text/plain"), "")


def test_keys_are_compared_in_constant_time() -> None:
    assert "hmac.compare_digest(" in inspect.getsource(admin.authorize)


def test_promote_and_rollback_over_http_are_audited_and_take_effect(world: World) -> None:
    first = world.publish_live()
    second = world.publish(("cyan", "magenta", "yellow"))
    key = {"authorization": "Bearer sesame"}
    with serving(world, extra={"PERENNIAL_SERVE__ADMIN_KEY": "sesame"}) as server:
        path = f"/v1/models/{second}/promote"
        refused = server.http.post(path, json={"reason": "mine"})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        for bad in ({}, {"reason": ""}, {"reason": 3}, ["x"], {"reason": "x" * 1001}, {"reason": "a\x00"}):
            assert server.http.post(path, json=bad, headers=key).status_code == 422
        assert server.http.post("/v1/models/none/promote", json={"reason": "x"}, headers=key).status_code == 404
        nowhere = server.http.post("/v1/rollback", json={"reason": "x"}, headers=key)
        assert nowhere.status_code == 409
        assert deployments.live(world.engine, "colours").version == first

        answer = server.http.post(path, json={"reason": "better"}, headers=key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == second
        assert server.serves(second)
        assert server.predict(picture("red"))["label"] == "cyan"

        answer = server.http.post("/v1/rollback", json={"reason": "worse after all"}, headers=key)
        assert answer.json()["version"] == first
        assert server.serves(first)
        assert server.predict(picture("red"))["label"] == "red"
    trail = world.events(EventKind.DEPLOYED, EventKind.ROLLED_BACK)
    assert [(event.kind, event.detail["reason"]) for event in trail] == [
        (EventKind.DEPLOYED, "a test"),
        (EventKind.DEPLOYED, "better"),
        (EventKind.ROLLED_BACK, "worse after all"),
    ]
    assert trail[1].detail["actor"].startswith("http 127.0.0.1")
