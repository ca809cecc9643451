"""API keys: who may call what, how keys are made and kept, and the rule for this machine where there is none."""

from __future__ import annotations

import hashlib
import inspect
import json
import socket
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from commands.keys import app as keys_command
from perennial.errors import Forbidden, InvalidParameter, InvalidSettings, PerennialError, Unauthorized
from perennial.ledger import deployments
from perennial.ledger.events import EventKind
from perennial.settings import load_settings
from perennial.settings_sections import ReadPath
from service import keys
from service.keys import ADMIN, CALLER, IMAGES, SCOPES, Keyring, actor_of, digest_of, new_key
from tests.service.conftest import Server, World, make_world, picture, serving, wait

HOLDERS = {"camera-1": ["predict"], "clerk": ["feedback"], "boss": ["admin"]}
KEYS = {name: new_key() for name in HOLDERS}
OLD_KEY = new_key()
PATHS = frozenset({*SCOPES, *get_args(ReadPath)})
ROLLBACK = "/v1/rollback"


def entry(name: str, scopes: list[str], key: str, **more: str) -> dict[str, Any]:
    return {"name": name, "scopes": scopes, "sha256": digest_of(key), **more}


ENTRIES = [entry(name, scopes, KEYS[name]) for name, scopes in HOLDERS.items()]
ENTRIES.append(entry("old", ["predict"], OLD_KEY, expires="2026-01-01T00:00:00Z"))


def ring(*entries: dict[str, Any], **serve: Any) -> Keyring:
    return Keyring(load_settings(serve={"keys": list(entries), **serve}).serve, PATHS)


def admit(ring: Keyring, path: str, client: str = "127.0.0.1", **headers: str) -> str | None:
    given = {"host": "127.0.0.1:3000", "content_type": "application/json", **headers}
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in given.items()]
    return ring.admit({"client": (client, 4000), "headers": raw}, dict(raw), path)


# --- without a key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(PATHS - IMAGES - {path for path, scope in SCOPES.items() if scope == ADMIN}))
def test_without_keys_everybody_may_do_all_but_admin_calls(path: str) -> None:
    assert admit(ring(), path, "10.0.0.7") is None
    assert not ring().guards(path)


@pytest.mark.parametrize("path", sorted(IMAGES))
def test_captured_images_answer_this_machine_only_until_there_is_a_key_for_them(path: str) -> None:
    assert admit(ring(), path) is None
    for elsewhere in ({"client": "10.0.0.7"}, {"x_forwarded_for": "10.0.0.7"}, {"origin": "https://shop.example"}):
        with pytest.raises(Forbidden, match="perennial keys create"):
            admit(ring(), path, **elsewhere)
    guarded = ring(*ENTRIES)
    with pytest.raises(Unauthorized):
        admit(guarded, path)
    assert admit(guarded, path, "10.0.0.7", x_api_key=KEYS["clerk"]) == "clerk"
    # Keys for something else do not open them to the world.
    with pytest.raises(Forbidden):
        admit(ring(entry("clerk", ["feedback"], KEYS["clerk"])), path, "10.0.0.7")


def test_the_operations_page_opens_without_a_key_and_knows_what_asks_for_one() -> None:
    serve = load_settings(serve={"keys": ENTRIES}).serve
    keyring = Keyring(serve, frozenset({"/ops", "/ops/ops.js", "/v1/overview"}))
    assert not keyring.guards("/ops")
    assert not keyring.guards("/ops/ops.js")
    assert keyring.guards("/v1/overview")
    assert keys.asked(serve) == {"read": True, "predict": True, "feedback": True, "admin": True}
    assert keys.asked(load_settings().serve) == {"read": False, "predict": False, "feedback": False, "admin": False}


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_without_an_admin_key_this_machine_may(client: str) -> None:
    assert admit(ring(), ROLLBACK, client) is None
    assert actor_of({CALLER: None, "client": (client, 1)}) == f"http {client}"


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("10.0.0.7", {}),
        ("::ffff:10.0.0.7", {}),
        ("testclient", {}),
        ("127.0.0.1", {"x_forwarded_for": "127.0.0.1"}),
        ("127.0.0.1", {"forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {"x_real_ip": "127.0.0.1"}),
        ("127.0.0.1", {"x_forwarded_for": ""}),
        ("127.0.0.1", {"host": "rebound.example.org"}),
        ("127.0.0.1", {"origin": "https://shop.example"}),
        ("127.0.0.1", {"origin": "http://127.0.0.1:8888"}),
        ("127.0.0.1", {"origin": "null"}),
    ],
    ids=[
        "other machine", "other machine by IPv6", "no address", "proxy", "proxy 2", "proxy 3", "proxy that hides",
        "DNS rebinding", "page of another site", "page of another server here", "page from a file",
    ],
)  # fmt: skip
def test_without_an_admin_key_nobody_else_may(client: str, headers: dict[str, str]) -> None:
    for keyring in (ring(), ring(ENTRIES[0])):
        with pytest.raises(Forbidden, match="keys create"):
            admit(keyring, ROLLBACK, client, **headers)


@pytest.mark.parametrize(
    "host",
    ["", "a{b}.evil.example", 'a"b.evil.example', "localhost@evil.example", "evil.example@localhost",
     "localhost/@evil.example", "[::1", "[x]", "localhost:abc", "localhost:99999999", "127.0.0.1.evil.example"],
)  # fmt: skip
def test_a_host_that_is_not_plainly_this_machine_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        admit(ring(), ROLLBACK, host=host)


def test_a_second_host_header_is_refused() -> None:
    raw = [(b"host", b"evil.example"), (b"host", b"localhost"), (b"content-type", b"application/json")]
    with pytest.raises(Forbidden):
        ring().admit({"client": ("127.0.0.1", 1), "headers": raw}, dict(raw), ROLLBACK)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1", "[::1]:3000"])
def test_this_machine_goes_by_these_names(host: str) -> None:
    assert admit(ring(), ROLLBACK, host=host) is None
    assert admit(ring(), ROLLBACK, host=host, origin=f"http://{host}") is None


def test_a_page_in_a_browser_cannot_send_an_admin_call() -> None:
    with pytest.raises(InvalidParameter, match="application/json"):
        admit(ring(), ROLLBACK, content_type="text/plain")


def test_an_admin_call_that_nobody_has_looked_at_is_refused() -> None:
    with pytest.raises(Forbidden):
        actor_of({"client": ("127.0.0.1", 1)})


# --- with keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, Unauthorized),
        ({"authorization": ""}, Unauthorized),
        ({"authorization": "Bearer"}, Unauthorized),
        ({"authorization": "Bearer wrong"}, Unauthorized),
        ({"authorization": "Bearer kéy"}, Unauthorized),
        ({"authorization": f"Basic {KEYS['boss']}"}, Unauthorized),
        ({"authorization": f"Bearer {digest_of(KEYS['boss'])}"}, Unauthorized),
        ({"authorization": f"Bearer {KEYS['boss'][:-1]}"}, Unauthorized),
        ({"x_api_key": "x" * 10_000}, Unauthorized),
        ({"authorization": f"Bearer {OLD_KEY}"}, Unauthorized),
        ({"authorization": f"Bearer {KEYS['camera-1']}"}, Forbidden),
        ({"authorization": f"Bearer {KEYS['boss']}"}, None),
        ({"authorization": f"bearer  {KEYS['boss']}"}, None),
        ({"x_api_key": KEYS["boss"]}, None),
        ({"authorization": "Basic of a proxy", "x_api_key": KEYS["boss"]}, None),
    ],
)
def test_with_an_admin_key_everybody_needs_it(headers: dict[str, str], error: type[PerennialError] | None) -> None:
    for client in ("127.0.0.1", "10.0.0.7"):
        if error is None:
            assert admit(ring(*ENTRIES), ROLLBACK, client, **headers) == "boss"
        else:
            with pytest.raises(error) as caught:
                admit(ring(*ENTRIES), ROLLBACK, client, **headers)
            assert not any(key in str(caught.value) for key in (*KEYS.values(), OLD_KEY))


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/v1/predict", {"camera-1", "boss"}),
        ("/v1/predict/batch", {"camera-1", "boss"}),
        ("/classify", {"camera-1", "boss"}),
        ("/v1/feedback", {"clerk", "boss"}),
        ("/v1/rollback", {"boss"}),
        ("/v1/models/{version}/promote", {"boss"}),
        ("/v1/model", {"camera-1", "clerk", "boss"}),
        ("/v1/status", {"camera-1", "clerk", "boss"}),
        ("/v1/events", {"camera-1", "clerk", "boss"}),
        ("/docs.json", {"camera-1", "clerk", "boss"}),
    ],
)
def test_each_scope_covers_its_calls_and_admin_covers_all(path: str, may: set[str]) -> None:
    keyring = ring(*ENTRIES)
    for name, key in KEYS.items():
        if name in may:
            assert admit(keyring, path, x_api_key=key) == name
        else:
            with pytest.raises(Forbidden, match=name):
                admit(keyring, path, x_api_key=key)
    with pytest.raises(Unauthorized):
        admit(keyring, path)


def test_a_scope_without_a_key_of_its_own_stays_open_and_still_names_the_caller() -> None:
    keyring = ring(ENTRIES[2])
    assert admit(keyring, "/v1/predict") is None
    assert admit(keyring, "/v1/predict", x_api_key="unknown") is None
    assert admit(keyring, "/v1/predict", x_api_key=KEYS["boss"]) == "boss"


def test_a_scope_does_not_open_because_its_only_key_has_expired() -> None:
    with pytest.raises(Unauthorized):
        admit(ring(ENTRIES[3]), "/v1/predict")


def test_what_needs_no_key_can_be_chosen_among_what_only_reads() -> None:
    keyring = ring(*ENTRIES, keys_exempt=["/livez", "/docs.json"])
    assert admit(keyring, "/livez") is None
    assert admit(keyring, "/docs.json") is None
    with pytest.raises(Unauthorized):
        admit(keyring, "/metrics")
    for path in ("/v1/predict", "/v1/rollback", "/nowhere"):
        with pytest.raises(InvalidSettings, match=r"keys_exempt"):
            load_settings(serve={"keys_exempt": [path]})


def test_every_key_is_compared_in_constant_time_and_to_the_last() -> None:
    source = inspect.getsource(Keyring._find)
    assert "hmac.compare_digest(" in source
    assert "break" not in source
    assert "return" not in source[source.index("for known") :].split("return found")[0]


def test_settings_hold_digests_and_an_error_never_shows_what_was_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_SERVE__KEYS", json.dumps(ENTRIES))
    assert [key.name for key in load_settings().serve.keys] == ["camera-1", "clerk", "boss", "old"]
    secret = KEYS["boss"]
    for bad in (
        [{"name": "a", "scopes": ["predict"], "sha256": secret}],
        [{"name": "a", "scopes": [], "sha256": digest_of(secret)}],
        [{"name": "a", "scopes": ["all"], "sha256": digest_of(secret)}],
        [{"name": "a b", "scopes": ["predict"], "sha256": digest_of(secret)}],
        [{"name": "a", "scopes": ["predict"], "key": secret}],
        [{"name": "a", "scopes": ["predict"], "sha256": digest_of(secret), "expires": "2027-01-01T00:00:00"}],
        secret,
    ):
        with pytest.raises(InvalidSettings, match=r"serve\.keys") as caught:
            load_settings(serve={"keys": bad})
        assert secret not in str(caught.value)
    monkeypatch.setenv("PERENNIAL_SERVE__KEYS", f'[{{"name": "a", "sha256": "{secret}"')
    with pytest.raises(InvalidSettings, match="PERENNIAL_SERVE__KEYS") as caught:
        load_settings()
    assert secret not in str(caught.value)


# --- making them -----------------------------------------------------------------------------------------


def test_a_new_key_has_256_bits_and_is_never_the_same() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("perennial_") and len(key) == len("perennial_") + 43 for key in made)
    assert digest_of("a") == hashlib.sha256(b"a").hexdigest()


def test_the_command_prints_a_key_and_settings_that_let_it_in() -> None:
    options = ["create", "--name", "camera-7", "--scope", "predict", "--scope", "feedback", "--days", "30", "--json"]
    made = json.loads(CliRunner().invoke(keys_command, options, catch_exceptions=False).stdout)
    (from_toml,) = tomllib.loads(made["toml"])["serve"]["keys"]
    assert made["key"] not in made["toml"]
    for form in (from_toml, made["settings"]):
        assert admit(ring(form), "/v1/predict", x_api_key=made["key"]) == "camera-7"
        assert admit(ring(form), "/v1/feedback", x_api_key=made["key"]) == "camera-7"
    read = (
        CliRunner().invoke(keys_command, ["create", "--name", "a", "--scope", "admin"], catch_exceptions=False).stdout
    )
    lines = [line.strip() for line in read.splitlines()]
    key = next(line for line in lines if line.startswith("perennial_"))
    assert f'sha256 = "{digest_of(key)}"' in lines


@pytest.mark.parametrize("options", [("--name", "a b", "--scope", "predict"), ("--name", "a", "--scope", "all")])
def test_a_key_that_the_settings_would_not_take_is_not_made(options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(keys_command, ["create", *options])
    assert isinstance(result.exception, InvalidParameter)
    assert "--name" in str(result.exception) or "--scope" in str(result.exception)


# --- a real server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = make_world(tmp_path_factory.mktemp("guarded") / "home")
    world.publish_live()
    with serving(world, extra={"PERENNIAL_SERVE__KEYS": json.dumps(ENTRIES)}) as server:
        yield server


def test_a_server_with_keys_asks_for_them_and_answers_health_without(guarded: Server) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/metrics"):
        assert guarded.http.get(path).status_code == 200
    for path in ("/", "/docs.json", "/schema.json", "/v1/model", "/v1/status", "/v1/events"):
        missing = guarded.http.get(path)
        assert missing.status_code == 401
        assert missing.headers["www-authenticate"] == "Bearer"
        assert missing.json()["type"].endswith("unauthorized")
        assert guarded.http.get(path, headers={"X-API-Key": KEYS["clerk"]}).status_code == 200
    red = picture("red")
    assert guarded.post("/v1/predict", red, authorization=f"Bearer {KEYS['camera-1']}").json()["label"] == "red"
    refused = guarded.post("/v1/predict", red, authorization=f"Bearer {KEYS['clerk']}")
    assert (refused.status_code, refused.json()["type"].rsplit(":", 1)[1]) == (403, "forbidden")
    document = guarded.http.get("/docs.json", headers={"X-API-Key": KEYS["boss"]}).json()
    assert document["paths"]["/v1/predict"]["post"]["security"]
    assert "security" not in document["paths"]["/livez"]["get"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch", "/v1/feedback", "/v1/rollback", "/classify"])
def test_a_caller_without_a_key_is_refused_before_its_body_is_read(guarded: Server, path: str) -> None:
    port = int(guarded.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n"
            "expect: 100-continue\r\n\r\n".encode()
        )
        # Neither the body nor leave to send it: the answer is there at once.
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_promote_and_rollback_over_http_are_audited_by_the_name_of_the_key(guarded: Server) -> None:
    world, server = guarded.world, guarded
    first = deployments.live(world.engine, "colours").version
    second = world.publish(("cyan", "magenta", "yellow"))
    key = {"authorization": f"Bearer {KEYS['boss']}"}
    path = f"/v1/models/{second}/promote"
    assert server.http.post(path, json={"reason": "mine"}).status_code == 401
    for bad in ({}, {"reason": ""}, {"reason": 3}, ["x"], {"reason": "x" * 1001}, {"reason": "a\x00"}):
        assert server.http.post(path, json=bad, headers=key).status_code == 422
    assert server.http.post("/v1/models/none/promote", json={"reason": "x"}, headers=key).status_code == 404
    assert server.http.post("/v1/rollback", json={"reason": "x"}, headers=key).status_code == 409
    assert deployments.live(world.engine, "colours").version == first

    answer = server.http.post(path, json={"reason": "better"}, headers=key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == second
    assert server.http.get("/v1/model").status_code == 401
    answer = server.http.post("/v1/rollback", json={"reason": "worse after all"}, headers=key)
    assert answer.json()["version"] == first
    assert answer.json()["actor"] == "key boss, http 127.0.0.1"
    assert not any(key in server.output() for key in KEYS.values())
    trail = world.events(EventKind.DEPLOYED, EventKind.ROLLED_BACK)
    assert [(event.kind, event.detail["reason"]) for event in trail] == [
        (EventKind.DEPLOYED, "a test"),
        (EventKind.DEPLOYED, "better"),
        (EventKind.ROLLED_BACK, "worse after all"),
    ]
    assert trail[1].detail["actor"] == "key boss, http 127.0.0.1"
    # As it was, for the tests beside this one.
    assert wait(lambda: server.http.get("/v1/model", headers=key).json()["version"] == first)


def test_without_keys_this_machine_promotes_and_the_new_model_answers(world: World) -> None:
    world.publish_live()
    second = world.publish(("cyan", "magenta", "yellow"))
    with serving(world) as server:
        proxied = {"X-Forwarded-For": "127.0.0.1"}
        assert server.http.post("/v1/rollback", json={"reason": "x"}, headers=proxied).status_code == 403
        answer = server.http.post(f"/v1/models/{second}/promote", json={"reason": "better"})
        assert answer.json()["actor"] == "http 127.0.0.1"
        assert server.serves(second)
        assert server.predict(picture("red"))["label"] == "cyan"


def test_the_calls_that_are_guarded_are_calls_that_exist() -> None:
    assert keys.SCOPES.keys() <= PATHS
