"""A check's report as a browser reads it: the right pictures, nothing loaded, nothing of ours to run."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from monitoring import page, report, two_sample
from monitoring.breakdown import ClassChange
from monitoring.check import Check, run_check
from monitoring.drawing import DrawingHere
from monitoring.examples import Example, Neighbour, Why
from monitoring.page import MOST_BYTES, Shown, render
from monitoring.window import Reference, Scores, window_of
from perennial import ledger
from perennial.images import InputRule
from perennial.ledger import open_ledger
from perennial.settings import Settings
from perennial.storage import Storage, capture_key, sha256
from tests.monitoring.conftest import drawn_of, turned

HOSTILE = "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&amp;"


class Parsed(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[np.ndarray[Any, Any]]:
        sources = [str(image["src"]) for image in self.all("img")]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        decoded = (base64.b64decode(source.partition(",")[2]) for source in sources)
        return [np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float) for data in decoded]


@pytest.fixture
def sqlite(home: Path) -> Iterator[sa.Engine]:
    engine = open_ledger(f"sqlite:///{home / 'ledger.sqlite'}")
    yield engine
    engine.dispose()


def capture(storage: Storage, images: Any) -> list[str]:
    """8 x 8 grey images as PNG files in the storage, as the service keeps them."""
    urls = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "PNG")
        urls.append(storage.write(capture_key(sha256(buffer.getvalue()), "PNG"), buffer.getvalue()))
    return urls


def page_of(check: Check, settings: Settings) -> str:
    storage = Storage(settings.blobs_url)
    assert check.report_url is not None
    html = storage.read(storage.key_of(check.report_url)).decode()
    assert len(html.encode()) < MOST_BYTES
    return html


def test_a_drifted_window_is_shown_beside_its_nearest_reference_images(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings, pictured=True)
    storage = Storage(watched_settings.blobs_url)
    rows = world.traffic[:300]
    images = turned(world.images[rows])
    urls = capture(storage, images)
    ids = model.record(world.scores(rows, turned), urls=urls)
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "data_drift"

    document = check.document()
    assert 2 <= len(document["examples"]) <= 8
    assert ledger.checks.latest(sqlite, "digits")[0].detail["examples"] == document["examples"]
    html = page_of(check, watched_settings)
    parsed = Parsed(html)
    pictures = parsed.pictures()
    assert len(pictures) == 4 * len(check.examples)
    for number, example in enumerate(check.examples):
        shown, *near = pictures[4 * number : 4 * number + 4]
        asked = images[ids.index(example.prediction_id)] * 255
        assert np.abs(images * 255 - shown).mean(axis=(1, 2)).argmin() == ids.index(example.prediction_id)
        assert np.abs(shown - asked).mean() < 20  # JPEG of sharp 8 x 8 pixels
        assert example.prediction_id in parsed.text
        for picture, neighbour in zip(near, example.nearest, strict=True):
            place = int(neighbour.digest, 16)
            known = world.images[world.reference_rows] * 255
            assert world.reference_rows[np.abs(known - picture).mean(axis=(1, 2)).argmin()] == place
    assert check.causes[0].why in parsed.text
    (frame,) = parsed.all("iframe")
    assert frame["sandbox"] == "allow-scripts allow-downloads"
    inner = Parsed(str(frame["srcdoc"]))
    assert "drawDashboard" in str(frame["srcdoc"])
    assert len(inner.all("script")) == 4
    nothing_is_loaded(parsed)

    # The same window once more: an image is gone, another is not one any more, a third is too large.
    keys = [storage.key_of(example.image_url) for example in check.examples[:3]]
    storage.delete(keys[0])
    storage.write(keys[1], b"not an image")
    storage.write(keys[2], b"\xff\xd8" + bytes(watched_settings.serve.max_bytes))
    again = run_check(sqlite, watched_settings)
    assert [each.prediction_id for each in again.examples] == [each.prediction_id for each in check.examples]
    parsed = Parsed(page_of(again, watched_settings))
    assert len(parsed.pictures()) == 4 * len(check.examples) - 3
    assert "The image is no longer there" in parsed.text
    assert "are not an image" in parsed.text
    assert "at most 33,554,432 are accepted" in parsed.text


def nothing_is_loaded(parsed: Parsed) -> None:
    policies = [str(each.get("content")) for each in parsed.all("meta") if "http-equiv" in each]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:")
    assert not parsed.all("link")
    assert not parsed.all("script")
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(str(each["href"]).startswith("#") for each in parsed.all("a"))


def test_without_captured_images_it_says_how_to_keep_some_and_a_clean_window_shows_none(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.send()
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.examples) == ("ok", ())
    clean = Parsed(page_of(check, watched_settings))
    assert "drifted most" not in clean.text
    assert "What comes in is what the model knows." in clean.text
    assert "brightness" in clean.text

    model.record(world.scores(world.traffic[:300], turned), captured=False)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.examples) == ("data_drift", ())
    parsed = Parsed(page_of(check, watched_settings))
    assert 'serve.capture = "all"' in parsed.text
    assert not parsed.all("img")


def test_a_frozen_camera_is_shown_though_nothing_could_be_tested(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    rows = np.repeat(world.traffic[:1], 300)
    model.record(world.scores(rows), urls=capture(Storage(watched_settings.blobs_url), world.images[rows[:1]]) * 300)
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "collection_fault"
    assert len(check.examples) == 1
    parsed = Parsed(page_of(check, watched_settings))
    assert len(parsed.pictures()) == 1
    assert "The bundle has no thumbnails" in parsed.text
    assert not parsed.all("iframe")


def renamed(scores: Scores, name: str) -> Scores:
    """The class 3 under another name."""
    predicted = np.array([name if each == "3" else each for each in scores.predicted], dtype=object)
    return replace(scores, predicted=predicted, labels=tuple(name if each == "3" else each for each in scores.labels))


def test_names_from_outside_are_text_and_nothing_else(world: Any, settings: Settings) -> None:
    plain = world.reference()
    classes = tuple(HOSTILE if name == "3" else name for name in plain.classes)
    reference = Reference(classes, plain.properties, renamed(plain.scores, HOSTILE), plain.held_out)
    scores = renamed(world.scores(world.traffic[:200]), HOSTILE)
    measured = two_sample.measure(reference, scores)
    evidently = DrawingHere().html(drawn_of(reference, scores, measured, name=HOSTILE))
    example = Example(
        HOSTILE, "file:///no/such/place.png", Why.DRIFTED, 1.0, HOSTILE, 0.9, HOSTILE, ("brightness", -3.0),
        (Neighbour("r1", HOSTILE, HOSTILE, 1.0),),
    )  # fmt: skip
    check = a_check(name=HOSTILE, causes=[{"cause": "data_drift", "why": HOSTILE, "columns": [HOSTILE]}])
    window = replace(window_of([]), rows=200, scores=scores, answers=scores.answers)
    html = page.of_check(
        check, settings, InputRule(8, 8), reference, window, properties=None, examples=[example],
        thumbnails={"r1": b"j"}, evidently=evidently,
    )  # fmt: skip
    parsed = Parsed(html)
    nothing_is_loaded(parsed)
    assert parsed.text.count("</script><script>") >= 4
    assert [each["src"] for each in parsed.all("img")] == ["data:image/jpeg;base64,ag=="]
    (frame,) = parsed.all("iframe")
    inner = Parsed(str(frame["srcdoc"]))
    assert len(inner.all("script")) == 4
    assert not inner.all("img")
    assert "probability:\\u003c/script>" in str(frame["srcdoc"])  # the same JSON, which no longer ends the script
    data = re.search(r"var (metric_[0-9a-f]{32}) = (.*?);\n", str(frame["srcdoc"]))
    assert data is not None


def a_check(**changes: Any) -> dict[str, Any]:
    """A check's document, as `Check.document` has it."""
    return {
        "name": "digits",
        "verdict": "data_drift",
        "state": "suspected",
        "causes": [],
        "model_version": "v",
        "window": {"rows": 200, "start": None, "end": None, "precision": "float32", "first": None, "last": None},
        "families": {},
        "problems": [],
        "accuracy": {
            "labels": None, "labelled": 0, "estimated": None, "reference": None, "past_estimates": None,
            "errors_rose": None,
        },
        "retrain": {"due": False, "why": "nothing is wrong"},
        "false_alarms": None,
        **changes,
    }  # fmt: skip


def test_a_page_stays_under_its_bound_whatever_evidently_writes() -> None:
    plain = Shown(a_check(), datetime.now(UTC), 200, 0)
    small, large = (render(replace(plain, evidently="<p>'&" + "x" * size)) for size in (1000, MOST_BYTES))
    assert Parsed(small).all("iframe")[0]["srcdoc"] == "<p>'&" + "x" * 1000
    assert not Parsed(large).all("iframe")
    assert "Left out" in Parsed(large).text
    assert len(large) < 100_000


def test_long_names_many_classes_and_many_problems_are_cut_short() -> None:
    classes = [ClassChange("<" * 5000 + str(at), 0.1, 0.2, None, None, None, None) for at in range(500)]
    problems = [{"family": "output", "column": "c" * 5000, "problem": "p" * 5000}] * 500
    families = {"output": {"skipped": "s" * 100_000}}
    check = a_check(
        families=families, problems=problems, causes=[{"cause": "data_drift", "why": "y" * 100_000, "columns": []}]
    )
    html = render(Shown(check, datetime.now(UTC), 200, 0, classes=classes))
    assert len(html.encode()) < 200_000
    assert "460 classes more" in Parsed(html).text
    assert "and 480 columns more" in Parsed(html).text


def test_a_model_of_two_classes_with_labels_has_its_report(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    reference, scores = world.reference(), world.scores(world.traffic)
    few = {"3", "8"}

    def two(some: Scores) -> Scores:
        kept = np.array([{label, guess} <= few for label, guess in zip(some.labels, some.predicted, strict=True)])
        return some.take(kept)

    for known, now in ((two(reference.scores), two(scores)), (reference.scores, two(scores))):
        against = replace(reference, scores=known, held_out=np.ones(len(known), dtype=bool))
        measured = two_sample.measure(against, now)
        run = report.render(drawn_of(against, now, measured, least_labels=20))
        shown = {metric["config"]["type"].rsplit(":", 1)[-1]: metric["value"] for metric in run.dict()["metrics"]}
        assert shown["Accuracy"] == pytest.approx(now.answers.correct.mean())
        assert set(shown["RecallByLabel"]) == few
