"""Labels that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.errors import UnknownLabel
from perennial.ledger import checks, new_classes, predictions
from perennial.ledger.events import EventKind
from service.feedback import FeedbackDesk, parse
from service.recorder import Recorder
from tests.service.conftest import Server, World, picture
from tests.service.test_service_recorder import row as prediction


def send(server: Server, body: Any) -> httpx.Response:
    return server.http.post("/v1/feedback", json=body)


def label_of(server: Server, prediction: dict[str, Any]) -> str | None:
    rows = server.world.latest(prediction["model"]["version"], 1000)
    return next(row.true_label for row in rows if row.prediction.id == prediction["prediction_id"])


def test_a_label_is_committed_before_its_answer(shared_server: Server) -> None:
    prediction = shared_server.predict(picture("red"))
    answer = send(shared_server, {"prediction_id": prediction["prediction_id"], "label": "green", "source": "Ann"})
    assert answer.status_code == 200
    assert answer.json() == {"accepted": 1, "kept": 0, "unknown_predictions": [], "unknown_labels": []}
    assert label_of(shared_server, prediction) == "green"


def test_feedback_is_idempotent_and_the_last_label_wins(shared_server: Server) -> None:
    prediction = shared_server.predict(picture("red"))
    before = shared_server.world.rows("labels")
    for label in ("green", "green", "green", "blue"):
        answer = send(shared_server, {"prediction_id": prediction["prediction_id"], "label": label})
        assert answer.json()["accepted"] == 1
    assert label_of(shared_server, prediction) == "blue"
    assert shared_server.world.rows("labels") == before + 2


def test_an_unknown_prediction_is_a_404(shared_server: Server) -> None:
    answer = send(shared_server, {"prediction_id": "01999999-0000-7000-8000-000000000000", "label": "red"})
    assert answer.status_code == 404
    assert answer.json()["type"].endswith(":unknown-prediction")


def test_a_label_that_is_no_class_is_kept_and_named_and_counts_nowhere_yet(shared_server: Server) -> None:
    prediction = shared_server.predict(picture("red"))
    identifier = prediction["prediction_id"]
    before = shared_server.world.rows("labels")
    answer = send(shared_server, {"prediction_id": identifier, "label": "pürple", "source": "Ann"})
    assert answer.status_code == 200
    assert answer.json() == {"accepted": 0, "kept": 1, "unknown_predictions": [], "unknown_labels": ["pürple"]}
    assert shared_server.world.rows("labels") == before + 1
    assert label_of(shared_server, prediction) is None
    assert 'perennial_feedback_total{outcome="kept"}' in shared_server.http.get("/metrics").text
    # Corrected, it counts; and the last of several in one call counts, known or not.
    send(
        shared_server, [{"prediction_id": identifier, "label": "mauve"}, {"prediction_id": identifier, "label": "red"}]
    )
    assert label_of(shared_server, prediction) == "red"


@pytest.mark.parametrize("label", ["x" * 201, "a\x00b", " purple", "two\nlines"])
def test_a_label_that_cannot_be_kept_is_a_422_that_lists_the_classes(shared_server: Server, label: str) -> None:
    prediction = shared_server.predict(picture("red"))
    answer = send(shared_server, {"prediction_id": prediction["prediction_id"], "label": label})
    assert answer.status_code == 422
    assert answer.json()["type"].endswith(":unknown-label")
    assert "red, green, blue" in answer.json()["detail"]
    assert "200 printable characters" in answer.json()["detail"]


def test_new_labels_are_refused_where_none_are_wanted_and_once_there_are_too_many(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = world.publish_live()
    rows = [prediction(model_version=version) for _ in range(3)]
    predictions.record(world.engine, rows)
    recorder = Recorder(lambda: world.engine, tmp_path / "journal", min_free_bytes=0)
    call = parse([{"prediction_id": row.id, "label": f"new {at}"} for at, row in enumerate(rows)])
    one = parse({"prediction_id": rows[0].id, "label": "other"})

    off = FeedbackDesk("colours", recorder, keeps=False)
    assert off.take(world.engine, call)["unknown_labels"] == ["new 0", "new 1", "new 2"]
    with pytest.raises(UnknownLabel, match=r"its classes are: red, green, blue$"):
        off.take(world.engine, one)
    assert world.rows("labels") == 0

    monkeypatch.setattr(new_classes, "MOST_LABELS", 2)
    on = FeedbackDesk("colours", recorder, keeps=True)
    answer = on.take(world.engine, call)
    assert (answer["accepted"], answer["kept"]) == (0, 2)
    assert answer["unknown_labels"] == ["new 0", "new 1", "new 2"]
    assert world.rows("labels") == 2
    for desk in (on, FeedbackDesk("colours", recorder, keeps=True)):
        with pytest.raises(UnknownLabel, match="2 other new labels are kept already"):
            desk.take(world.engine, one)
        again = desk.take(world.engine, parse({"prediction_id": rows[2].id, "label": "new 1"}))
        assert again["kept"] == 1  # of a name that is kept, more are


def test_in_a_list_the_good_ones_are_taken_and_the_others_named(shared_server: Server) -> None:
    first, second = (shared_server.predict(picture("red")) for _ in range(2))
    unknown = "01999999-0000-7000-8000-000000000001"
    answer = send(
        shared_server,
        [
            {"prediction_id": first["prediction_id"], "label": "red"},
            {"prediction_id": unknown, "label": "red"},
            {"prediction_id": "no id at all, and much longer than one " * 3, "label": "red"},
            {"prediction_id": second["prediction_id"], "label": "purple"},
        ],
    )
    assert answer.status_code == 200
    body = answer.json()
    assert (body["accepted"], body["kept"]) == (1, 1)
    assert unknown in body["unknown_predictions"]
    assert len(body["unknown_predictions"]) == 2
    assert body["unknown_labels"] == ["purple"]
    assert label_of(shared_server, first) == "red"
    assert label_of(shared_server, second) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"3",
        b'"x"',
        b'{"prediction_id": "x"}',
        b'{"prediction_id": 3, "label": "red"}',
        b'{"prediction_id": "x", "label": "red", "lable": 1}',
        b'[{"prediction_id": "x", "label": ""}]',
        b'{"prediction_id": "x", "label": "red", "source": "a\\u0000b"}',
        b'{"prediction_id": "x", "label": "red", "source": "\\ud800"}',
        b"[" * 100_000,
        b"\xff\xfe\xff",
    ],
)
def test_a_body_that_is_no_feedback_is_a_422(shared_server: Server, body: bytes) -> None:
    answer = shared_server.post("/v1/feedback", body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"].endswith(":invalid-parameter")


def test_a_body_beyond_the_limit_is_a_413(shared_server: Server) -> None:
    assert shared_server.post("/v1/feedback", b" " * (5 * 2**20)).status_code == 413


def test_odd_characters_in_ids_and_labels_are_only_unknown(shared_server: Server) -> None:
    prediction = shared_server.predict(picture("red"))["prediction_id"]
    assert send(shared_server, {"prediction_id": "a\x00b", "label": "red"}).status_code == 404
    assert send(shared_server, {"prediction_id": prediction, "label": "a\x00"}).status_code == 422
    surrogate = f'{{"prediction_id": "{prediction}", "label": "\\ud800"}}'.encode()
    assert shared_server.post("/v1/feedback", surrogate).status_code == 422


def test_feedback_is_counted(shared_server: Server) -> None:
    prediction = shared_server.predict(picture("red"))
    send(shared_server, {"prediction_id": prediction["prediction_id"], "label": "red"})
    text = shared_server.http.get("/metrics").text
    assert 'perennial_feedback_total{outcome="accepted"}' in text


def test_the_status_says_so_before_the_first_check_and_shows_the_latest_after_it(shared_server: Server) -> None:
    world = shared_server.world
    version = next(iter(world.classes))
    nothing = shared_server.http.get("/v1/status").json()
    assert nothing["verdict"] is None
    assert "no check yet" in nothing["message"]
    window = {"rows": 700, "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-02T00:00:00+00:00"}
    detail: dict[str, Any] = {
        "causes": ["brightness"],
        "families": {"properties": {"score": 2.5, "p_value": 0.001, "alarm": True}},
    }
    detail["accuracy"] = {"labels": None, "estimated": {"value": float("nan")}}
    number = checks.record(
        world.engine,
        name="colours",
        model_version=version,
        window=window,
        verdict="sensor_shift",
        detail=detail,
        report_url="file:///private/report.html",
        events_to_add=[(EventKind.CHECK_CHANGED, {"verdict": "sensor_shift"})],
    )
    status = shared_server.http.get("/v1/status").json()
    assert (status["verdict"], status["check"], status["window"]) == ("sensor_shift", number, window)
    assert status["families"] == detail["families"]
    assert status["accuracy"] == {"labels": None, "estimated": {"value": None}}
    assert status["model_version"] == version


def test_events_are_paged_oldest_first(shared_server: Server) -> None:
    first = shared_server.http.get("/v1/events?limit=1").json()
    assert [event["kind"] for event in first["events"]] == ["deployed"]
    assert first["after"] == first["events"][0]["id"]
    rest = shared_server.http.get(f"/v1/events?after={first['after']}").json()["events"]
    assert all(event["id"] > first["after"] for event in rest)
    far = shared_server.http.get(f"/v1/events?after={2**63 - 1}").json()
    assert far == {"events": [], "after": 2**63 - 1}


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001", f"after={2**63}", "limit="])
def test_a_bad_page_is_a_422(shared_server: Server, query: str) -> None:
    assert shared_server.http.get(f"/v1/events?{query}").status_code == 422
