"""The operations page in a real browser, beside a real server and ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

from perennial.ledger import EventKind, deployments, rollouts
from perennial.ledger.schema import labels, predictions
from service.keys import digest_of, new_key
from service.ops.page import ASSETS
from tests.service.browser import DESKTOP, PHONE, browser, needs_chromium, visiting
from tests.service.conftest import Server, make_world, serving, wait
from tests.service.ops_story import CLASSES, Story, begin, drifting, grown, scene, watched

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
# Into the clipboard of the system, from where the keys that people press take it.
COPY = """(bytes) => navigator.clipboard.write([
  new ClipboardItem({"image/png": new Blob([Uint8Array.from(bytes)], {type: "image/png"})}),
])"""
# What each timer is set for, in milliseconds; and a tab that nobody looks at.
TIMERS = """
window.timers = [];
const set = window.setTimeout;
window.setTimeout = (what, after, ...rest) => { window.timers.push(after); return set(what, after, ...rest); };
"""
SEEN = """(state) => {
  Object.defineProperty(document, "visibilityState", {configurable: true, get: () => state});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
LOOK = "dispatchEvent(new Event('online'))"
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(slots=True)
class Scene:
    """A server that may be killed and started anew, and what it is about."""

    story: Story
    live: str
    other: str
    key: str
    keep: ExitStack
    server: Server = field(init=False)

    def start(self, port: int = 0) -> None:
        keys = [{"name": "ann", "scopes": ["admin"], "sha256": digest_of(self.key)}]
        extra = {
            "PERENNIAL_SERVE__CAPTURE": "all", "PERENNIAL_SERVE__KEYS": json.dumps(keys),
            "PERENNIAL_ROLLOUT__SHADOW_SHARE": "1", "PERENNIAL_ROLLOUT__SHADOW_BUDGET": "1",
        }  # fmt: skip
        self.server = self.keep.enter_context(serving(self.story.world, extra=extra, port=port))

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
    world = make_world(home)
    story = begin(world)
    live, other = grown(story)
    with ExitStack() as keep:
        found = Scene(story, live, other, new_key(), keep)
        found.start()
        for seed in range(12):
            found.server.predict(scene(CLASSES[seed % 3], seed, dark=True))
        world.settle()
        yield found
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
    page.evaluate(LOOK)


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
        notes = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"buy milk"}
        page.locator("#try-file").set_input_files(notes)
        expect(page.locator("#try-answer .wrong")).to_contain_text("these 8 bytes are not an image; send JPEG")
        expect(page.locator(".drop")).to_contain_text("This browser cannot show it")
        assert len(visit.refused()) == 2
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.evaluate(COPY, list(scene("leaf", 72, form="PNG")))
        page.locator("#events-title").scroll_into_view_if_needed()
        page.keyboard.press("ControlOrMeta+V")
        expect(page.locator("#try-answer")).to_contain_text("leaf,")
        expect(page.locator("#try-answer")).to_be_in_viewport()
        # What was chosen for the image before is not said of this one.
        expect(page.get_by_label("What it really is")).to_have_value("leaf")
    world = told.story.world
    world.settle()
    with world.engine.connect() as connection:
        query = sa.select(sa.func.count()).where(predictions.c.source == "ops")
        assert connection.execute(query).scalar_one() == 3


def test_it_says_when_the_server_or_the_ledger_is_away_and_recovers(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        expect(page.locator("#updated")).to_contain_text("Updated")
        page.context.set_offline(True)
        page.evaluate(LOOK)
        expect(page.locator("#away")).to_contain_text("The server does not answer. What you see is of")
        assert page.locator("main").get_attribute("class") == "old"
        assert serious(page) == []
        expect(page.locator(".headline")).to_be_visible()
        page.context.set_offline(False)
        expect(page.locator("#away")).to_be_hidden()
        assert page.locator("main").get_attribute("class") == ""
        problem = {"title": "The ledger does not answer", "status": 503, "detail": "the database does not answer"}
        page.route(
            "**/v1/overview*",
            lambda route: route.fulfill(status=503, body=json.dumps(problem), content_type="application/problem+json"),
        )
        page.evaluate(LOOK)
        expect(page.locator("#away")).to_contain_text("its ledger does not: the database does not answer")
        page.unroute("**/v1/overview*")
        page.evaluate(LOOK)
        expect(page.locator("#away")).to_be_hidden()
        for body, said in (
            ("<html>a proxy's own page", "What answers is not the service."),
            ('{"name": "flowers"}', "This page cannot show what the service answers; if it was updated, load the page"),
        ):
            page.route("**/v1/overview*", partial(Route.fulfill, status=200, body=body))
            page.evaluate(LOOK)
            expect(page.locator("#away")).to_contain_text(said)
            page.unroute("**/v1/overview*")
            page.evaluate(LOOK)
            expect(page.locator("#away")).to_be_hidden()
        visit.refused()
        [told_why] = visit.errors  # for whoever is asked to mend it
        assert told_why.startswith("TypeError")
        visit.errors.clear()


def test_a_server_that_was_killed_is_missed_and_found_again_by_itself(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        expect(page.locator("#updated")).to_contain_text("Updated")
        said, port = page.locator("#state .pill").inner_text(), httpx.URL(told.url).port
        assert port is not None
        told.server.kill()
        expect(page.locator("#away")).to_contain_text("The server does not answer. What you see is of")
        expect(page.locator("#updated")).to_contain_text("Not updated since")
        expect(page.locator("#state .pill")).to_have_text(said)
        expect(page.locator(".chart canvas")).to_have_count(3)
        page.locator("#try-file").set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"x"})
        expect(page.locator("#try-answer .wrong")).to_contain_text("the server does not answer")
        told.start(port)
        expect(page.locator("#away")).to_be_hidden(timeout=40_000)
        expect(page.locator("#updated")).to_contain_text("Updated")
        assert page.locator("main").get_attribute("class") == ""
        visit.refused()


def test_a_page_that_stays_open_keeps_nothing_and_looks_seldom_where_nobody_sees_it(
    told: Scene, chromium: Browser
) -> None:
    full = told.server.http.get("/v1/overview").json()
    bare = {**full, "checks": [], "events": [], "models": full["models"][:1]}
    turn = 0

    def answer(route: Route) -> None:
        nonlocal turn
        turn += 1
        found = {**(bare if turn % 2 else full), "at": str(turn)}
        found["traffic"] = {**found["traffic"], "answered": [turn] * len(found["traffic"]["answered"])}
        route.fulfill(json=found)

    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.add_init_script(TIMERS)
        page.route("**/v1/overview*", answer)
        page.reload()
        expect(page.locator("#updated")).to_contain_text("Updated")
        counts = [kept(page, rounds) for rounds in (6, 30)]
        assert turn > 36
        for name, before, after in zip(("nodes", "listeners"), *counts, strict=True):
            assert after <= 1.05 * before, name
        expect(page.locator(".uplot")).to_have_count(1 if turn % 2 else 3)
        for state, milliseconds in (("hidden", 60_000), ("visible", 5_000)):
            page.evaluate(SEEN, state)
            with page.expect_response("**/v1/overview*"):
                page.evaluate(LOOK)
            assert wait(lambda ms=milliseconds: page.evaluate("window.timers.at(-1)") == ms, 5), state


def kept(page: Page, rounds: int) -> tuple[float, float]:
    """Nodes and listeners that are left after so many updates, an even number of them."""
    for _ in range(rounds):
        with page.expect_response("**/v1/overview*"):
            page.evaluate(LOOK)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    devtools.send("HeapProfiler.enable")
    devtools.send("HeapProfiler.collectGarbage")
    found = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
    devtools.detach()
    return found["Nodes"], found["JSEventListeners"]


def test_of_many_classes_one_is_found_by_its_letters(told: Scene, chromium: Browser) -> None:
    world, server = told.story.world, told.server
    names = ["oak", "red oak", "oak gall", *(f"kind {number}" for number in range(1, 38))]
    version = told.story.publish(told.story.now, classes=names)
    deployments.deploy(world.engine, world.settings.name, version, reason="many classes", actor="test")
    assert server.serves(version)
    for seed in range(8):
        server.predict(scene("leaf", 200 + seed))
    world.settle()
    queue = server.http.get("/v1/labels/queue").json()["images"]
    before = len(told.labels())
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.get_by_role("button", name="Start labelling").click()
        expect(page.locator(".classes button")).to_have_count(40)
        field, hint = page.get_by_label("Find a class"), page.locator("#label-found")
        expect(hint).to_have_text(f"40 classes. Type some letters of one. Enter answers {queue[0]['predicted']}.")
        expect(field).to_be_focused()
        page.keyboard.type("oak")
        expect(page.locator(".classes button span")).to_have_text(["oak", "oak gall", "red oak"])
        expect(hint).to_have_text("3 classes found. Enter answers oak.")
        assert serious(page) == []
        page.keyboard.press("Enter")
        expect(field).to_be_focused()  # who types one types the next
        expect(field).to_have_value("")
        page.keyboard.press("Enter")  # nothing typed: the model is right
        page.keyboard.type("kind 31")
        page.keyboard.press("Enter")
        page.keyboard.type("no such")
        expect(hint).to_contain_text("No class has these letters. Esc, then N, names a new one.")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        expect(page.locator(".tray")).to_be_focused()
        page.keyboard.press("2")
        page.keyboard.down("b")
        page.keyboard.down("b")  # held down, it is one answer
        page.keyboard.up("b")
        expect(page.locator("#label-body")).to_contain_text("All sent.")
        asked = [each["prediction_id"] for each in queue]
        assert told.labels()[before:] == [
            (asked[0], "oak", "ops"),
            (asked[1], queue[1]["predicted"], "ops"),
            (asked[2], "kind 31", "ops"),
            (asked[3], "red oak", "ops"),
            (asked[4], "kind 8", "ops"),
        ]
        page.keyboard.press("/")
        expect(field).to_be_focused()
        for key in ("ArrowRight", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        expect(page.locator(".tray")).to_contain_text("Nothing is left to label")
        page.get_by_role("button", name="Look again").click()
        expect(page.locator(".tray img")).to_have_count(1)  # what was skipped comes again
        expect(field).to_be_focused()
        page.keyboard.press("Enter")
        assert wait(lambda: told.labels()[-1][0] == asked[5], 10)


def test_it_shows_a_watch_and_each_stage_of_a_rollout_with_numbers(told: Scene, chromium: Browser) -> None:
    world, server = told.story.world, told.server
    engine, name = world.engine, world.settings.name
    deployments.deploy(engine, name, told.other, reason="for a while", actor="test")
    deployments.deploy(engine, name, told.live, reason="better after all", actor="test")
    assert server.serves(told.live)
    rollout = rollouts.start(
        engine,
        name,
        champion=told.live,
        challenger=told.other,
        stages=("shadow", 0.5),
        reason="passed",
        actor="test",
    )
    assert wait(lambda: f"{told.other} is at stage" in server.output()), server.output()[-2000:]
    try:
        answers = [server.predict(scene(CLASSES[seed % 3], 300 + seed)) for seed in range(6)]
        world.settle()
        watched(told.story, answers[:4], right=(True, True, True, False), before=(True, False, True, False))
        assert wait(lambda: (overview(server)["rollout"] or {"answered": 0})["answered"] >= 3, 15)
        with visiting(chromium, told.url) as visit:
            page = visit.page
            underway, models = page.locator("#underway-body"), page.locator("#models")
            expect(underway).to_contain_text(f"{told.other} beside {told.live}: in the shadow")
            expect(underway).to_contain_text("stage 1 of 2")
            expect(underway).to_contain_text("of the 200 it needs")
            expect(underway).to_contain_text("Says the same as the live one100\u00a0%")
            expect(underway).to_contain_text("which it replaced: 4 of 200 labelled images compared")
            expect(underway).to_contain_text("Live75.0\u00a0% (30.1 to 95.4)")
            expect(underway).to_contain_text("Before50.0\u00a0%")
            expect(page.locator("#state")).to_contain_text(
                f"Under way: {told.other} goes live in steps, shadow; watched"
            )
            expect(models.locator("tr", has_text=told.other).first).to_contain_text("rolling out")
            rollout = rollouts.advance(engine, rollout, why="fine", actor="test", detail={})
            latest(told, page)
            expect(underway).to_contain_text("50 % of the traffic; stage 2 of 2")
            page.get_by_role("button", name="Roll back").click()
            said = f"{told.other} stops answering, and {told.live} answers everything again."
            expect(page.get_by_role("dialog")).to_contain_text(said)
    finally:
        rollouts.stop(engine, rollout, why="the test is over", actor="test")


def overview(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/v1/overview").json()
    return found


def test_everything_is_reached_and_left_by_the_keyboard(told: Scene, chromium: Browser) -> None:
    with visiting(chromium, told.url) as visit:
        page = visit.page
        page.wait_for_selector(".chart canvas")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        for name in (f"Promote {told.other} …", "Roll back …"):
            button = page.get_by_role("button", name=name)
            assert tab_to(page, button)
            page.keyboard.press("Enter")
            expect(page.get_by_label("Why?")).to_be_focused()
            for _ in range(8):  # round and round, and never behind the dialog
                page.keyboard.press("Tab")
                assert page.evaluate("() => !document.activeElement.closest('main')")
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_be_hidden()
            expect(button).to_be_focused()
        for place in (page.get_by_role("button", name="Start labelling"), page.locator("#try-file")):
            assert tab_to(page, place)
        assert tab_to(page, page.locator("#events-filter"))
        page.keyboard.type("deployed")
        expect(page.locator("#events-count")).to_contain_text("of")


def tab_to(page: Page, place: Locator) -> bool:
    """Press Tab until it has the focus, and never past it; what has the focus shows that it has."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if place.evaluate("(each) => each === document.activeElement"):
            return place.evaluate("(each) => each.matches(':focus-visible')") is True
    return False


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_it_moves_only_for_those_who_do_not_mind_and_can_be_enlarged(
    told: Scene, chromium: Browser, motion: Any
) -> None:
    moving = """() => [
      getComputedStyle(document.documentElement).scrollBehavior === "smooth",
      [...document.querySelectorAll("*")].some((each) => {
        const {transitionDuration, animationName} = getComputedStyle(each);
        return animationName !== "none" || transitionDuration.split(",").some((time) => parseFloat(time) > 0);
      }),
    ]"""
    # A page at 400 % has a fourth of its pixels (WCAG 1.4.10); one whose letters alone are larger has all of them.
    with visiting(chromium, told.url, reduced_motion=motion, viewport={"width": 320, "height": 256}) as visit:
        page = visit.page
        page.wait_for_selector(".chart canvas")
        assert page.evaluate(moving) == [motion == "no-preference"] * 2
        assert page.evaluate(SIDEWAYS) <= 0
        page.set_viewport_size(DESKTOP)
        before = page.locator(".headline").bounding_box()
        page.evaluate("document.documentElement.style.fontSize = '200%'")
        after = page.locator(".headline").bounding_box()
        assert before is not None
        assert after is not None
        assert after["height"] > 1.5 * before["height"]
        assert page.evaluate(SIDEWAYS) <= 0


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
        expect(page.locator("#away")).to_be_hidden()
        assert serious(page) == []
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


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_it_fits(told: Scene, chromium: Browser, scheme: Any, viewport: Any) -> None:
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
