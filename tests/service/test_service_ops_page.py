"""The operations page in a real browser, beside a real server and ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from perennial.ledger import EventKind, deployments
from perennial.ledger.schema import labels, predictions
from service.keys import digest_of, new_key
from service.ops.page import ASSETS
from tests.service.browser import DESKTOP, PHONE, browser, needs_chromium, visiting
from tests.service.conftest import Server, make_world, serving, wait
from tests.service.ops_story import CLASSES, Story, begin, drifting, grown, scene

pytestmark = needs_chromium

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
# Chromium's: a file dropped on an element, as a person's would be.
DROP = """([place, bytes, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(bytes)], "dropped.jpg", {type}));
  const target = document.querySelector(place);
  for (const name of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}"""
DRAWN = """(canvas) => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let drawn = 0;
  for (let at = 3; at < data.length; at += 4) drawn += data[at] > 0;
  return drawn / (data.length / 4);
}"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(slots=True)
class Scene:
    server: Server
    story: Story
    live: str
    other: str
    key: str

    @property
    def url(self) -> str:
        return self.server.url

    def labels(self) -> list[tuple[str, str, str | None]]:
        """Prediction, label and source of what has come in, oldest first."""
        with self.story.world.engine.connect() as connection:
            of = labels.c
            rows = connection.execute(sa.select(of.prediction_id, of.label, of.source).order_by(of.id))
            return [(row[0], row[1], row[2]) for row in rows]

    def live_version(self) -> str:
        return deployments.live(self.story.world.engine, self.story.name).version


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A server over four days of a model's life, with a key for admin calls."""
    home = tmp_path_factory.mktemp("ops") / "home"
    world, key = make_world(home), new_key()
    story = begin(world)
    live, other = grown(story)
    keys = [{"name": "ann", "scopes": ["admin"], "sha256": digest_of(key)}]
    extra = {"PERENNIAL_SERVE__CAPTURE": "all", "PERENNIAL_SERVE__KEYS": json.dumps(keys)}
    with serving(world, extra=extra) as server:
        for seed in range(12):
            server.predict(scene(CLASSES[seed % 3], seed, dark=True))
        world.settle()
        yield Scene(server, story, live, other, key)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def as_it_was(told: Scene) -> None:
    """Each test begins with the same model live."""
    if told.live_version() != told.live:
        deployments.deploy(told.story.world.engine, told.story.name, told.live, reason="the next test", actor="test")
    assert told.server.serves(told.live)


def latest(told: Scene, page: Page) -> None:
    """Have the page look now, past the second for which the service keeps an overview."""
    page.wait_for_timeout(1100)
    page.evaluate("dispatchEvent(new Event('online'))")


def test_it_tells_each_phase_of_a_models_life_without_being_loaded_again(told: Scene, chromium: Browser) -> None:
    story = told.story
    with visiting(chromium, told.url) as visit:
        page = visit.page
        story.check(told.live, story.now - timedelta(minutes=4))
        latest(told, page)
        headline = page.locator(".headline")
        expect(headline).to_contain_text("Healthy since")
        expect(headline).to_contain_text("accuracy 0.96 by 412 labels; last check")
        expect(page.locator("#state .pill")).to_have_text("✓ Healthy")
        expect(page.locator("#check-body")).to_contain_text("Nothing has changed that matters")
        for name in ("traffic", "accuracy", "drift"):
            canvas = page.locator(f"[data-chart={name}] canvas")
            expect(canvas).to_have_count(1)
            assert canvas.evaluate(DRAWN) > 0.005
            assert len(page.locator(f"[data-chart={name}] figcaption").inner_text()) > 20

        page.locator("[data-chart=drift] summary").click()
        with story.world.engine.connect() as connection:
            ids = list(connection.execute(sa.select(predictions.c.id).order_by(predictions.c.id)).scalars())
        drifting(story, told.live, story.examples(told.live, [*ids[:3], "01a1fb77-194f-7ebc-b7bf-c270089afb4e"]))
        latest(told, page)
        expect(headline).to_contain_text("Drifting (sensor shift) since")
        expect(page.locator("#check-body")).to_contain_text("brightness fell by 1.3 standard deviations")
        expect(page.locator("[data-chart=drift] figcaption")).to_contain_text("Alarm: image properties")
        expect(page.locator("[data-chart=drift] tbody tr").first).to_contain_text("1.31")  # the table stayed open
        page.locator(".gallery").scroll_into_view_if_needed()
        expect(page.locator(".gallery li")).to_have_count(4)
        wide = "() => [...document.querySelectorAll('.gallery img')].filter((each) => each.naturalWidth > 0).length"
        assert wait(lambda: page.evaluate(wide) == 3 + 12, 10)
        expect(page.locator(".gallery li").last.locator(".pair > .shot .gone").first).to_be_visible()

        story.event(EventKind.RETRAIN_STARTED, story.now, champion=told.live, labels=412)
        latest(told, page)
        expect(headline).to_contain_text("Retraining since")
        expect(page.locator("#state .pill")).to_have_text("! Retraining")

        third = story.publish(story.now, parent=told.live, accuracy=0.97)
        story.event(EventKind.GATE_PASSED, story.now, version=third, champion=told.live, why="better on 61 of 84")
        story.deploy(third, story.now, reason="passed the gate", actor="watch")
        latest(told, page)
        expect(page.locator("#models tr", has_text=third).first).to_contain_text("live")
        expect(headline).to_contain_text("Serving, not checked yet since")
        expect(page.locator("#events-body li").first).to_contain_text("passed the gate")
        visit.refused()  # the picture that is gone
    assert told.server.serves(third)
    story.check(told.live, story.now)  # without the picture that is gone


def test_a_label_from_the_keyboard_reaches_the_ledger_and_can_be_corrected(told: Scene, chromium: Browser) -> None:
    queue = told.server.http.get("/v1/labels/queue").json()["images"]
    before = len(told.labels())
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.get_by_role("button", name="Start labelling").click()
        expect(page.locator(".tray")).to_be_focused()
        expect(page.locator("#label-body")).to_contain_text(f"The model says {queue[0]['predicted']}")
        press = page.keyboard.press
        press("Enter")  # the model is right
        press("3")
        press("s")
        press("n")
        page.keyboard.type("moss 1")  # no shortcut while somebody writes
        press("Enter")
        press("u")
        press("u")
        press("u")
        expect(page.locator("#label-body")).to_contain_text("You said sky")
        press("1")
        expect(page.locator("#label-body")).to_contain_text("All sent.")
        asked = [each["prediction_id"] for each in queue]
        assert told.labels()[before:] == [
            (asked[0], queue[0]["predicted"], "ops"),
            (asked[1], "sky", "ops"),
            (asked[3], "moss 1", "ops"),
            (asked[1], "berry", "ops"),
        ]
        latest(told, page)
        expect(page.locator("#underway-body")).to_contain_text("moss 1: 1 of")


def test_a_label_that_could_not_be_sent_is_kept_over_a_reload_and_sent_again(told: Scene, chromium: Browser) -> None:
    before = len(told.labels())
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.get_by_role("button", name="Start labelling").click()
        expect(page.locator(".classes button")).to_have_count(3)
        page.route("**/v1/feedback", lambda route: route.abort())
        page.keyboard.press("2")
        expect(page.locator(".unsent")).to_contain_text("1 label not sent yet: the server does not answer")
        page.on("dialog", lambda dialog: dialog.accept())
        page.reload()
        expect(page.locator(".unsent")).to_be_visible()
        page.unroute("**/v1/feedback")
        assert wait(lambda: len(told.labels()) == before + 1, 10)
        expect(page.locator(".unsent")).to_have_count(0)
        assert told.labels()[-1][1:] == ("leaf", "ops")
        visit.refused()


def test_rollback_and_promote_by_click_with_a_reason_and_a_key(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.get_by_role("button", name=f"Promote {told.other}").click()
        expect(page.get_by_role("dialog")).to_contain_text(f"in place of {told.live}")
        page.get_by_role("button", name="Promote", exact=True).click()
        assert told.live_version() == told.live  # nothing without a reason
        page.get_by_label("Why?").fill("it knows wet leaves")
        page.get_by_label("Admin key").fill("perennial_wrong")
        page.get_by_role("button", name="Promote", exact=True).click()
        expect(page.locator("#deploy-problem")).to_contain_text("this key is not known here")
        assert told.live_version() == told.live
        assert len(visit.refused()) == 1
        page.get_by_label("Admin key").fill(told.key)
        page.get_by_role("button", name="Promote", exact=True).click()
        expect(page.locator("#notices")).to_contain_text(f"{told.other} is live now")
        expect(page.locator("#models tr", has_text=told.other).first).to_contain_text("live")
        assert told.live_version() == told.other
        assert told.server.serves(told.other)
        page.wait_for_timeout(1100)
        page.get_by_role("button", name="Roll back").click()
        page.get_by_label("Why?").fill("wrong on wet leaves after all")
        expect(page.get_by_label("Admin key")).to_be_hidden()  # this tab knows it
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(page.locator("#events-body li").first).to_contain_text("wrong on wet leaves after all")
        assert told.key not in page.url
    found = deployments.history(told.story.world.engine, told.story.name)[-1]
    assert (found.version, found.reason) == (told.live, "wrong on wet leaves after all")
    assert found.actor.startswith("key ann")


def test_an_image_is_classified_by_drop_and_from_a_file_and_labelled(
    told: Scene, chromium: Browser, tmp_path: Path
) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        berry = tmp_path / "berry.jpg"
        berry.write_bytes(scene("berry", 71))
        page.wait_for_selector("#models-body table")
        page.evaluate(DROP, [".drop", list(scene("leaf", 70)), "image/jpeg"])
        expect(page.locator("#try-answer")).to_contain_text("leaf,")
        expect(page.locator("#try-answer .bars li")).to_have_count(3)
        assert page.locator(".drop img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 160
        page.locator("#try-file").set_input_files(berry)
        expect(page.locator("#try-answer")).to_contain_text("berry,")
        page.get_by_label("What it really is").select_option("sky")
        page.get_by_role("button", name="Save label").click()
        expect(page.locator("#notices")).to_contain_text("Labelled sky")
        assert wait(lambda: told.labels()[-1][1:] == ("sky", "ops"), 10)
        page.evaluate(DROP, [".drop", list(b"\xff\xd8\xff no image"), "image/jpeg"])
        expect(page.locator("#try-answer .wrong")).to_contain_text("these 12 bytes are not an image")
        assert len(visit.refused()) == 1
    world = told.story.world
    world.settle()
    with world.engine.connect() as connection:
        query = sa.select(sa.func.count()).where(predictions.c.source == "ops")
        assert connection.execute(query).scalar_one() == 2


def test_it_says_when_the_server_or_the_ledger_is_away_and_recovers(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        expect(page.locator("#updated")).to_contain_text("Updated")
        page.context.set_offline(True)
        page.evaluate("dispatchEvent(new Event('online'))")  # look now
        expect(page.locator("#away")).to_contain_text("The server does not answer. What you see is of")
        assert page.locator("main").get_attribute("class") == "old"
        expect(page.locator(".headline")).to_be_visible()
        page.context.set_offline(False)
        expect(page.locator("#away")).to_be_hidden()
        assert page.locator("main").get_attribute("class") == ""
        problem = {"title": "The ledger does not answer", "status": 503, "detail": "the database does not answer"}
        page.route(
            "**/v1/overview*",
            lambda route: route.fulfill(status=503, body=json.dumps(problem), content_type="application/problem+json"),
        )
        page.evaluate("dispatchEvent(new Event('online'))")
        expect(page.locator("#away")).to_contain_text("its ledger does not: the database does not answer")
        page.unroute("**/v1/overview*")
        expect(page.locator("#away")).to_be_hidden()
        visit.refused()


def test_a_key_for_reading_is_asked_for_and_pictures_come_with_it(told: Scene, chromium: Browser) -> None:
    """As a service with keys for reading would answer; the pictures are its own."""
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.wait_for_selector("#models-body table")
        asked: list[str | None] = []
        problem = {"title": "A key is needed", "status": 401, "detail": "this call needs a key"}

        def guard(route: Any) -> None:
            asked.append(route.request.headers.get("authorization"))
            if asked[-1] is None:
                route.fulfill(status=401, body=json.dumps(problem), content_type="application/problem+json")
            else:
                route.continue_()

        page.route("**/v1/overview*", guard)
        page.route("**/v1/images/*", guard)
        page.reload()
        expect(page.locator("#key")).to_contain_text("Reading needs a key here: this call needs a key")
        page.get_by_label("Key", exact=True).fill(told.key)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#models-body table")
        page.get_by_role("button", name="Start labelling").click()
        shown = "() => document.querySelector('.tray img')?.src.startsWith('blob:')"
        page.wait_for_function(shown)
        assert asked[-1] == f"Bearer {told.key}"
        assert told.key not in page.url
        assert page.evaluate("() => Object.keys(localStorage).length") == 0
        visit.refused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_it_fits_a_phone(told: Scene, chromium: Browser, scheme: Any) -> None:
    viewport = PHONE if scheme == "dark" else DESKTOP
    with visiting(chromium, told.url, color_scheme=scheme, viewport=viewport) as visit:
        page = visit.page
        page.wait_for_selector(".chart canvas")
        page.get_by_role("button", name="Start labelling").click()
        expect(page.locator(".classes button")).to_have_count(3)
        page.locator("[data-chart=traffic] summary").click()
        faults = serious(page)
        assert faults == []
        page.get_by_role("button", name=f"Promote {told.other}").click()
        assert serious(page) == []
        page.keyboard.press("Escape")
        assert page.evaluate(SIDEWAYS) <= 0
        for button in page.locator("main button:visible, nav a, summary").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 24, button.inner_text()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= viewport["width"], button.inner_text()


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_what_came_from_elsewhere_is_text_and_nothing_else(told: Scene, chromium: Browser) -> None:
    story = told.story
    story.event(EventKind.RETRAIN_FAILED, story.now, champion=told.live, error="ValueError", reason=HOSTILE)
    answer = told.server.predict(scene("leaf", 80))
    told.story.world.settle()
    label = {"prediction_id": answer["prediction_id"], "label": HOSTILE, "source": HOSTILE}
    assert told.server.http.post("/v1/feedback", json=label).json()["kept"] == 1
    story.check(told.live, story.now, verdict="data_drift", state="drifting", why=HOSTILE)
    with visiting(chromium, told.url) as visit:
        page = visit.page
        latest(told, page)
        for place in ("#events-body", "#underway-body", "#check-body"):
            expect(page.locator(place)).to_contain_text(HOSTILE)
        assert page.locator("img[src=x]").count() == 0
        assert "taken" not in page.title()
        page.locator("#events-filter").fill("onerror")
        expect(page.locator("#events-body li")).to_have_count(1)
        expect(page.locator("#events-count")).to_contain_text("1 of")


def test_its_first_paint_is_quick_and_a_second_visit_fetches_nothing_again(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        visit.page.wait_for_selector(".chart canvas")
        painted = visit.page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 1500  # 300 ms on a machine with nothing else to do
    with httpx.Client(base_url=told.url) as http:
        for path in ASSETS:
            first = http.get(path)
            assert first.status_code == 200
            assert http.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
            assert "script-src 'self';" in first.headers["content-security-policy"]
