"""Webhooks are told everything, in order, at least once: a real receiver, real databases, real processes that die."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from perennial import notifying, webhooks
from perennial.errors import InvalidSettings
from perennial.ledger import EventKind, events, leases, schema, webhook_positions
from perennial.notifying import Notifier, Told, tell, tell_all
from perennial.settings import Settings, load_settings
from perennial.webhooks import Message, Webhook, configured, message_of, send, signed_headers
from tests.webhook_receiver import TOKEN, Receiver

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().listening() as receiver:
        yield receiver


def told_by(*urls: str, **notify: Any) -> Settings:
    return load_settings(name="shapes", notify={"webhooks": list(urls), "secret": SECRET, "timeout": 2, **notify})


def happen(engine: sa.Engine, count: int, kind: EventKind = EventKind.GATE_REFUSED) -> list[int]:
    start = len(events.after(engine, "shapes"))
    return [events.add(engine, "shapes", kind, {"number": start + number, "why": "a test"}) for number in range(count)]


@pytest.fixture
def known(engine: sa.Engine, receiver: Receiver) -> Settings:
    """Settings with a webhook that the ledger knows already."""
    settings = told_by(receiver.url)
    tell_all(engine, settings)
    return settings


def due_now(engine: sa.Engine) -> None:
    """As if the pause after a failure were over."""
    with engine.begin() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(sa.update(schema.webhook_positions).values(retry_at=past))


def test_a_new_webhook_begins_with_what_happens_from_now_on(engine: sa.Engine, receiver: Receiver) -> None:
    happen(engine, 3)
    settings = told_by(receiver.url)
    (told,) = tell_all(engine, settings)
    assert (told.delivered, receiver.arrived) == (0, [])
    happen(engine, 2)
    (told,) = tell_all(engine, settings)
    assert (told.delivered, told.refused, told.left) == (2, 0, "")
    assert receiver.numbers == [3, 4]
    assert tell_all(engine, settings)[0].delivered == 0


def test_the_signature_verifies_as_the_specification_says(
    engine: sa.Engine, known: Settings, receiver: Receiver
) -> None:
    number = happen(engine, 1)[0]
    before = time.time()
    tell_all(engine, known)
    (arrived,) = receiver.arrived
    headers = arrived.headers
    assert abs(int(headers["webhook-timestamp"]) - before) < 5
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + arrived.body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert "." not in headers["webhook-id"]
    assert headers["content-type"] == "application/json"
    body = json.loads(arrived.body)
    (event,) = events.by_id(engine, "shapes", [number])
    assert body == {"text": webhooks.sentence(event), "name": "shapes", "event": event.document()}


def test_the_published_example_is_signed_alike() -> None:
    # The test vector of the specification's own libraries.
    body = b'{"test": 2432232314}'
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", body, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], 1614265330
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    both = signed_headers("a", body, [SECRET, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], 1)["webhook-signature"]
    assert [part[:3] for part in both.split()] == ["v1,", "v1,"]
    assert "webhook-signature" not in signed_headers("a", body, [], 1)


def test_the_documented_way_to_verify_works(engine: sa.Engine, known: Settings, receiver: Receiver) -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    documented: dict[str, Any] = {}
    exec(code, documented)
    happen(engine, 1)
    tell_all(engine, known)
    (arrived,) = receiver.arrived
    verify = documented["verify"]
    assert verify(SECRET, arrived.headers, arrived.body)
    assert not verify(SECRET, arrived.headers, arrived.body + b" ")
    assert not verify("whsec_" + base64.b64encode(KEY[::-1]).decode(), arrived.headers, arrived.body)
    assert not verify(SECRET, {**arrived.headers, "webhook-timestamp": "1614265330"}, arrived.body)


def test_a_busy_receiver_is_asked_again_and_the_order_holds(
    engine: sa.Engine, known: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    happen(engine, 3)
    receiver.answers = [200, (503, {"retry-after": "120"}, b"not now")]
    (told,) = tell_all(engine, known)
    assert (told.delivered, told.left) == (1, "503 not now")
    (webhook,) = configured(known.notify)
    at = webhook_positions.position(engine, "shapes", webhook.key)
    assert at.attempts == 1
    assert at.retry_at is not None
    assert 100 < (at.retry_at - datetime.now(UTC)).total_seconds() <= 120  # as it was asked for
    assert tell(engine, known, webhook, patient=True).delivered == 0
    assert receiver.numbers == [0, 1]

    due_now(engine)
    assert tell(engine, known, webhook, patient=True).delivered == 2
    assert receiver.numbers == [0, 1, 1, 2]
    assert receiver.arrived[1].id == receiver.arrived[2].id
    assert len({each.id for each in receiver.arrived}) == 3
    assert "took event" in caplog.text


def test_a_receiver_that_is_down_loses_nothing(engine: sa.Engine, receiver: Receiver, free_port: int) -> None:
    late = Receiver(port=free_port)
    settings = told_by(late.url, receiver.url)
    tell_all(engine, settings)
    happen(engine, 5)
    down, up = tell_all(engine, settings)
    assert (down.delivered, up.delivered) == (0, 5)
    assert down.left.startswith("ConnectError")
    assert [down.document()["pending"], up.document()["pending"]] == [True, False]
    happen(engine, 2)
    with late.listening():
        down, up = tell_all(engine, settings)
    assert (down.delivered, up.delivered) == (7, 2)
    assert late.numbers == receiver.numbers == list(range(7))


def test_what_is_refused_is_given_up_and_the_rest_goes_on(
    engine: sa.Engine, known: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = happen(engine, 3)
    elsewhere = (302, {"location": receiver.url + "/elsewhere"}, b"")
    receiver.answers = [(400, {}, b"invalid_payload\nat " + receiver.url.encode()), elsewhere, 200]
    (told,) = tell_all(engine, known)
    assert (told.delivered, told.refused, told.left) == (1, 2, "")
    assert receiver.numbers == [0, 1, 2]  # and the redirect was not followed
    assert f"refuses event {numbers[0]} (gate_refused), which is given up: 400 invalid_payload at …" in caplog.text
    assert "a redirect, which is not followed" in caplog.text


def test_only_the_kinds_asked_for_are_sent_and_others_are_not_kept_for_later(
    engine: sa.Engine, receiver: Receiver
) -> None:
    settings = told_by(receiver.url, events=["deployed"])
    tell_all(engine, settings)
    happen(engine, 2, EventKind.CHECK_CHANGED)
    happen(engine, 1, EventKind.DEPLOYED)
    happen(engine, 2, EventKind.CHECK_CHANGED)
    assert tell_all(engine, settings)[0].delivered == 1
    assert receiver.numbers == [2]
    assert tell_all(engine, told_by(receiver.url, events=["check_changed"]))[0].delivered == 0


_DIES = """
import os, signal, sys
from perennial import notifying
from perennial.ledger import open_ledger, webhook_positions
from perennial.settings import load_settings

webhook_positions.advance = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
notifying.tell_all(open_ledger(sys.argv[1]), load_settings(name="shapes"))
"""


def test_killed_between_sending_and_noting_it_is_sent_again_under_the_same_id(
    engine: sa.Engine, ledger_url: str, known: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_NOTIFY__WEBHOOKS", json.dumps([receiver.url]))
    happen(engine, 2)
    done = subprocess.run([sys.executable, "-c", _DIES, ledger_url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert receiver.numbers == [0]
    (told,) = tell_all(engine, known)
    assert told.left == "another process is sending to it"  # until the dead one's lease has run out
    with engine.begin() as connection:
        connection.execute(sa.update(schema.leases).values(until=datetime.now(UTC) - timedelta(seconds=1)))
    (told,) = tell_all(engine, known)
    assert told.delivered == 2
    assert receiver.numbers == [0, 0, 1]
    assert receiver.arrived[0].id == receiver.arrived[1].id != receiver.arrived[2].id
    assert receiver.arrived[0].body == receiver.arrived[1].body


def test_many_senders_at_once_send_each_event_once(engine: sa.Engine, known: Settings, receiver: Receiver) -> None:
    happen(engine, 8)
    (webhook,) = configured(known.notify)
    faults: list[BaseException] = []

    def work() -> None:
        try:
            while len(receiver.arrived) < 8:
                tell(engine, known, webhook)
        except BaseException as error:  # noqa: BLE001 - a thread must not swallow what it met
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert receiver.numbers == list(range(8))


def test_a_webhook_that_somebody_else_sends_to_is_left_alone(
    engine: sa.Engine, known: Settings, receiver: Receiver
) -> None:
    happen(engine, 1)
    (webhook,) = configured(known.notify)
    with leases.held(engine, f"notify:shapes:{webhook.key[:16]}", 60):
        (told,) = tell_all(engine, known)
    assert told == Told(webhook.shown, left="another process is sending to it")
    assert receiver.arrived == []


def test_a_sender_that_overslept_does_not_set_back_what_another_did(engine: sa.Engine) -> None:
    at = webhook_positions.position(engine, "shapes", "a")
    webhook_positions.advance(engine, "shapes", "a", at, 7)
    webhook_positions.advance(engine, "shapes", "a", at, 3)
    webhook_positions.put_off(engine, "shapes", "a", at, datetime.now(UTC))
    assert webhook_positions.position(engine, "shapes", "a") == webhook_positions.Position(7, 0, None)


def test_the_notifier_goes_on_beside_a_receiver_that_hangs(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "_LOOK_SECONDS", 0.05)
    with Receiver(before_answering=lambda: time.sleep(1.5)).listening() as silent:
        settings = told_by(silent.url, receiver.url, timeout=0.3)
        tell_all(engine, settings)
        notifier = Notifier(lambda: engine, settings)
        notifier.start()
        try:
            began = time.monotonic()
            happen(engine, 3)
            while len(receiver.arrived) < 3:
                assert time.monotonic() - began < 10
                time.sleep(0.02)
            assert receiver.numbers == [0, 1, 2]
        finally:
            notifier.close(5)
        assert set(silent.numbers) <= {0}


def test_an_answer_is_bounded_in_size_and_time(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, (), timeout=0.4)
    message = Message("evt_1", "text", {})
    receiver.answers = [(500, {}, b"x" * 5_000_000)]
    assert len(send(webhook, message).said) <= 200
    receiver.before_answering = lambda: time.sleep(1)
    began = time.monotonic()
    answer = send(webhook, message)
    assert time.monotonic() - began < 0.9
    assert (answer.outcome, answer.said) == ("retry", "no answer within 0.4 seconds")


def test_slack_gets_text_alone_and_nothing_in_it_rings_anybody(engine: sa.Engine) -> None:
    number = events.add(
        engine, "shapes", EventKind.ROLLED_BACK,
        {"version": "v1", "replaces": "v2", "actor": "cli:ann", "reason": "<!channel> & @here"},
    )  # fmt: skip
    message = message_of(events.by_id(engine, "shapes", [number])[0])
    slack = json.loads(message.body(Webhook("https://hooks.slack.com/services/x", (), 1)))
    assert slack == {"text": "shapes: rolled back, v1 in place of v2 (by cli:ann): &lt;!channel&gt; &amp; @here"}
    other = json.loads(message.body(Webhook("https://chat.example/hooks/x", (), 1)))
    assert set(other) == {"text", "name", "event"}
    assert "@here" not in other["text"]
    assert other["event"]["detail"]["reason"] == "<!channel> & @here"


def test_pauses_grow_and_differ() -> None:
    assert all(1.0 <= notifying.pause_after(1) <= 2.0 for _ in range(20))
    assert all(300 <= notifying.pause_after(attempts) <= 600 for attempts in (10, 50, 5000))
    assert len({notifying.pause_after(5) for _ in range(20)}) > 10


def test_neither_a_url_nor_a_secret_is_printed(receiver: Receiver) -> None:
    settings = told_by(receiver.url)
    (webhook,) = configured(settings.notify)
    for shown in (repr(settings), str(settings.model_dump()), repr(webhook), webhook.shown, str(SecretStr(SECRET))):
        assert TOKEN not in shown
        assert SECRET not in shown
    assert webhook.shown.startswith(f"http://127.0.0.1:{receiver.port} (")
    assert Webhook("https://ann:password@host/x", (), 1).shown.startswith("https://host (")


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ({"webhooks": [f"ftp://host/{TOKEN}"]}, "begins with https"),
        ({"webhooks": [f"https:///{TOKEN}"]}, "begins with https"),
        ({"webhooks": [f"https://host:99999/{TOKEN}"]}, "begins with https"),
        ({"secret": TOKEN}, "whsec_ and 24 to 64 random bytes"),
        ({"secret": "whsec_c2hvcnQ="}, "whsec_ and 24 to 64 random bytes"),
        ({"secret": f"{SECRET} {TOKEN}"}, "whsec_ and 24 to 64 random bytes"),
        ({"events": ["deploied"]}, "there is no event 'deploied'; there are check_changed"),
        ({"timeout": 0}, "greater than or equal"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_repeating_a_secret(notify: Any, says: str) -> None:
    with pytest.raises(InvalidSettings, match=says) as refused:
        load_settings(notify=notify)
    assert TOKEN not in str(refused.value)
    assert SECRET not in str(refused.value)
