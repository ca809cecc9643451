"""A model's story is whole, on both databases, and its page is safe to open, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
import sqlalchemy as sa

from perennial.bundle import Bundle, ClassMetrics, Estimate, write_bundle
from perennial.errors import UnknownModel
from perennial.ledger import EventKind, deployments, events, models
from perennial.ledger.connect import writing
from perennial.story import Story, tell
from perennial.story_page import MOST_BYTES, duration, render
from tests.perennial.conftest import fill, manifest

V1, V2, V3 = (f"20260101-000000-0000{number}" for number in (1, 2, 3))
HOSTILE = "</td><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>"
GATE = {
    "outcome": "pass",
    "why": "better",
    "rules": [{"name": "better_on_fresh", "passed": True, "why": "on 90 fresh rows it has 93 %"}],
    "fresh": {
        "rows": 90,
        "champion": {"value": 0.7, "low": 0.6, "high": 0.79},
        "challenger": {"value": 0.93, "low": 0.86, "high": 0.97},
        "difference": {"value": 0.23, "low": 0.14, "high": 0.32},
        "only_champion": 2,
        "only_challenger": 23,
        "p_value": 0.0000097,
    },
    "old": None,
    "changed_classes": [],
    "more_labels": None,
}


class Page(HTMLParser):
    """Its tags, its attributes and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def retrained(
    engine: sa.Engine, version: str, champion: str, *, passed: bool = True, gate: dict[str, object] | None = None
) -> None:
    """The events of a retrain that a check asked for."""
    asked = events.add(
        engine, "shapes", EventKind.RETRAIN_REQUESTED, {"model_version": champion, "why": "accuracy lost 20 points"}
    )
    started = events.add(
        engine, "shapes", EventKind.RETRAIN_STARTED, {"champion": champion, "why": "x", "actor": "retrain"},
        caused_by=asked,
    )  # fmt: skip
    detail = {"version": version, "champion": champion, "why": "its numbers", "actor": "retrain", "seconds": 61.5}
    kind = EventKind.GATE_PASSED if passed else EventKind.GATE_REFUSED
    judged = events.add(engine, "shapes", kind, {**detail, "gate": gate or GATE}, caused_by=started)
    if passed:
        deployments.deploy(engine, "shapes", version, reason="a retrain", actor="retrain", caused_by=judged)


@pytest.fixture
def line(engine: sa.Engine, made_bundle: Callable[[str], Bundle], tmp_path: object) -> sa.Engine:
    """The first model, one that a retrain made of it and that was rolled back, and one that was refused."""
    models.register(engine, made_bundle(V1), "file:///bundles/1")
    deployments.deploy(engine, "shapes", V1, reason="the first model of its name", actor="train")
    for version in (V2, V3):
        bundle = made_bundle(version)
        child = Bundle(bundle.path, bundle.manifest.model_copy(update={"parent": V1}), bundle.digest)
        models.register(engine, child, f"file:///bundles/{version}")
    retrained(engine, V2, V1)
    deployments.roll_back(engine, "shapes", reason="worse at night", actor="cli:ann")
    retrained(engine, V3, V1, passed=False, gate={**GATE, "outcome": "refuse"})
    return engine


def test_a_model_that_was_rolled_back_tells_all_of_it(line: sa.Engine) -> None:
    story = tell(line, "shapes", V2)
    assert story.status == "rolled back"
    assert story.asked is not None
    assert (story.asked.who, story.asked.why) == ("monitor", "accuracy lost 20 points")
    assert [relative.version for relative in story.lineage] == [V1]
    (judgement,) = story.judgements
    assert (judgement.passed, judgement.champion, judgement.seconds) == (True, V1, 61.5)
    assert judgement.gate == GATE
    (period,) = story.periods
    assert (period.how, period.actor) == ("deployed", "retrain")
    assert period.ended is not None
    assert (period.ended.how, period.ended.by, period.ended.actor, period.ended.why) == (
        "rolled back", V1, "cli:ann", "worse at night",
    )  # fmt: skip
    assert 0 <= story.live_seconds < 60
    assert [str(event.kind) for event in story.events] == [
        "retrain_requested", "retrain_started", "gate_passed", "deployed", "rolled_back",
    ]  # fmt: skip
    document = story.document()
    assert document["manifest"]["pretrained"] == {"source": "builtin", "sha256": "0" * 64}
    assert document["manifest"]["dataset"]["fingerprint"] == "f"
    assert document["periods"][0]["ended"]["how"] == "rolled back"


def test_a_model_that_is_live_for_the_second_time_has_two_periods(line: sa.Engine) -> None:
    deployments.deploy(line, "shapes", V1, reason="again", actor="cli:bob")  # it is live: no new period
    story = tell(line, "shapes", V1)
    assert story.status == "live"
    assert [period.how for period in story.periods] == ["deployed", "rolled back to"]
    assert story.periods[0].ended is not None
    assert (story.periods[0].ended.how, story.periods[0].ended.by) == ("replaced", V2)
    assert story.periods[1].ended is None
    assert len(story.deployments) == 3
    assert story.descendants == (V2, V3)
    assert story.asked is not None
    assert (story.asked.who, story.asked.why) == ("perennial train", "the first model of its name")
    assert story.judgements == ()  # it was the champion, not the challenger


def test_a_model_that_was_refused_or_has_to_wait_was_never_live(line: sa.Engine) -> None:
    story = tell(line, "shapes", V3)
    assert (story.status, story.periods, story.live_seconds) == ("refused", (), 0)
    retrained(line, V3, V1, passed=False, gate={**GATE, "outcome": "wait"})
    assert tell(line, "shapes", V3).status == "waiting"
    assert len(tell(line, "shapes", V3).judgements) == 2
    with pytest.raises(UnknownModel):
        tell(line, "shapes", "nonsense")


def test_a_model_that_nothing_happened_to_has_a_page_too(
    engine: sa.Engine, made_bundle: Callable[[str], Bundle]
) -> None:
    models.register(engine, made_bundle(V1), "file:///x")
    story = tell(engine, "shapes", V1)
    assert (story.status, story.asked, story.events) == ("never live", None, ())
    text = Page(render(story)).text
    assert "It was made, but never live." in text
    assert "the first of its line" in text


def test_the_page_has_every_number_and_runs_and_loads_nothing(line: sa.Engine) -> None:
    html = render(tell(line, "shapes", V2))
    page = Page(html)
    for words in (
        "rolled back", "worse at night", "accuracy lost 20 points", "0" * 64, "fingerprint f", "on 90 fresh rows",
        "93.0 % (86.0 to 97.0)", "+23.0 (+14.0 to +32.0)", "9.7e-06", "fresh only challenger", "retrain requested",
        "62 s after the retrain began", "Caused by", "held out; 0 of all these were captured",
    ):  # fmt: skip
        assert words in page.text, words
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert not [value for name, value in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    for style in ("prefers-color-scheme: dark", "@media print"):
        assert style in html


def test_texts_are_escaped_and_everything_is_bounded(line: sa.Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    high = Estimate(value=0.9, low=0.8, high=1.0)
    labels = [f"{HOSTILE}{number}" for number in range(500)]
    hostile = manifest("20260101-000000-00009").model_copy(
        update={
            "why": HOSTILE * 1000,
            "per_class": {label: ClassMetrics(precision=high, recall=high, support=9) for label in labels},
            "metrics": {HOSTILE: high},
        }
    )
    models.register(line, write_bundle(tmp_path_factory.mktemp("bundles"), hostile, fill), f"file:///{HOSTILE}")
    gate = {**GATE, "rules": [{"name": HOSTILE, "passed": False, "why": HOSTILE * 1000}], HOSTILE: [HOSTILE] * 5000}
    for _ in range(3):
        retrained(line, hostile.version, V1, passed=False, gate=gate)
    with writing(line) as connection:
        for _ in range(400):
            detail = {"model_version": hostile.version, "why": HOSTILE * 100}
            events.append(connection, "shapes", EventKind.CHECK_CHANGED, detail)
    html = render(tell(line, "shapes", hostile.version))
    page = Page(html)
    assert len(html.encode()) < MOST_BYTES
    assert not {"script", "img"} & set(page.tags)
    assert "And 400 classes more" in page.text
    assert "109 before them are left out" in page.text


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 600, 5400, 7 * 3600 + 1200, 12.5 * 86_400)] == [
        "0 s", "89 s", "10 min", "1 h 30 min", "7 h 20 min", "12.5 days",
    ]  # fmt: skip


def test_periods_add_up(line: sa.Engine) -> None:
    story: Story = tell(line, "shapes", V1)
    later = story.at + timedelta(days=1)
    assert story.periods[1].seconds(later) - story.periods[1].seconds(story.at) == pytest.approx(86_400)
    assert datetime.now(UTC) - story.at < timedelta(seconds=10)
