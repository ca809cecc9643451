"""What of how images come in is a fault, what is worth a note, what is neither: tables of cases, and whole checks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from monitoring.check import run_check
from monitoring.collection import MOST_ENTRIES, examine
from monitoring.composition import Collection
from monitoring.decode_failures import NONE_FAILED, Failures, read_failures, unreadable
from monitoring.watch_metrics import WatchMetrics, registry
from monitoring.window import Reference, Window, window_of
from perennial import ledger
from perennial.ids import new_id
from perennial.images import ImageHeader
from perennial.ledger.rejected_images import RejectedImages
from perennial.settings import Settings
from perennial.settings_sections import MonitorSettings
from tests.monitoring.conftest import turned

SETTINGS = MonitorSettings(min_rows=200)
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def came(
    formats: dict[str, float] | None = None,
    modes: dict[str, float] | None = None,
    sizes: dict[str, float] | None = None,
    sources: dict[str, float] | None = None,
    newest: dict[str, float] | None = None,
) -> Collection:
    """JPEG in colour, 640x480, all from one camera, unless told otherwise."""
    sources = sources or {"cam-1": 1.0}
    return Collection(
        formats or {"JPEG": 1.0}, modes or {"RGB": 1.0}, sizes or {"640x480": 1.0}, sources, 0.01, newest or sources
    )


def window_that(received: Collection, rows: int = 1000) -> Window:
    return replace(window_of([]), rows=rows, collection=received)


GREY, MOSTLY_GREY, SOME_GREY = {"L": 1.0}, {"L": 0.6, "RGB": 0.4}, {"RGB": 0.6, "L": 0.4}
SMALL, MANY = {"96x64": 0.9, "640x480": 0.1}, {f"{side}x480": 1 / 300 for side in range(400, 700)}

#: What came, the reference's (None: its bundle does not say), what else is given, words of the faults and the notes.
CASES: list[tuple[str, Collection, Collection | None, dict[str, Any], list[str], list[str]]] = [
    ("as it was", came(), came(), {}, [], []),
    ("JPEG where the reference is PNG", came(), came({"PNG": 1.0}), {}, [], ["formats that the reference lacks: JPEG"]),
    ("one size after many", came(), came(sizes=MANY), {}, [], ["sizes that the reference lacks: 640x480 (100%"]),
    ("many sizes after one", came(sizes=MANY), came(), {}, [], []),
    ("a size that has always been among others", came(), came(sizes={"640x480": 0.1, "500x333": 0.9}), {}, [], []),
    (
        "half in two new formats",
        came({"JPEG": 0.5, "WEBP": 0.3, "TIFF": 0.2}),
        came(),
        {},
        [],
        ["lacks: WEBP (30% of the window), TIFF (20% of the window); there it is mostly JPEG, 100%"],
    ),
    ("a tenth in a new format", came({"JPEG": 0.9, "WEBP": 0.1}), came(), {}, [], []),
    ("turned grey", came(modes=GREY), came(), {}, ["100% of the images are files without colour (L, 100%)"], []),
    ("mostly turned grey", came(modes=MOSTLY_GREY), came(), {}, ["60% of the images are files without colour"], []),
    ("grey at times", came(modes=SOME_GREY), came(), {}, [], []),
    ("grey among grey", came(modes=GREY), came(modes={"RGB": 0.9, "L": 0.1}), {}, [], []),
    (
        "grey files of what never had colour",
        came(modes=GREY),
        came(),
        {"saturation": 0.0},
        [],
        ["modes that the reference lacks: L"],
    ),
    ("grey sketches of what was photos", came(modes=GREY), came(), {"other_images": True}, [], ["without colour"]),
    ("transparent where nothing was", came(modes={"RGBA": 1.0}), came(), {}, [], ["modes that the reference lacks"]),
    (
        "thumbnails",
        came(sizes=SMALL),
        came(),
        {},
        ["90% of the images are less than half as large as the 224 pixels a side that the network looks at (most"],
        [],
    ),
    ("small, as ever", came(sizes=SMALL), came(sizes={"96x64": 0.5, "640x480": 0.5}), {}, [], []),
    ("smaller, yet large enough", came(sizes={"160x120": 1.0}), came(), {}, [], ["sizes that the reference lacks"]),
    ("a bundle from before", came({"PNG": 1.0}, GREY, SMALL), None, {}, [], []),
    (
        "a source that fell silent",
        came(sources={"cam-1": 0.7, "cam-2": 0.25, "cam-3": 0.05}, newest={"cam-1": 1.0}),
        came(),
        {},
        [],
        ["the source 'cam-2' sent 25% of the window and none of its newest third"],
    ),
    ("sources named from now on", came(sources={"": 0.6, "a": 0.4}, newest={"a": 1.0}), came(), {}, [], []),
    ("too few rows to say anything", came(modes=GREY, sizes=SMALL), came(), {"rows": 199}, [], []),
]


@pytest.mark.parametrize(("case", "now", "before", "given", "faults", "notes"), CASES, ids=[case[0] for case in CASES])
def test_what_is_a_fault_and_what_a_note(
    world: Any,
    case: str,
    now: Collection,
    before: Collection | None,
    given: dict[str, Any],
    faults: list[str],
    notes: list[str],
) -> None:
    reference: Reference = replace(world.reference(), collection=before, side=224)
    reference.scores.properties[:, reference.properties.index("saturation")] = given.get("saturation", 0.3)
    facts = examine(
        reference,
        window_that(now, given.get("rows", 1000)),
        NONE_FAILED,
        SETTINGS,
        other_images=given.get("other_images", False),
    )
    assert len(facts.faults) == len(faults), facts.faults
    assert len(facts.notes) == len(notes), facts.notes
    for said, words in zip(facts.faults + facts.notes, faults + notes, strict=True):
        assert words in said


@pytest.mark.parametrize(
    ("by_reason", "answered", "words"),
    [
        ({}, 0, None),
        ({"invalid-image": 3}, 0, None),
        ({"truncated-image": 19}, 100, None),
        ({"truncated-image": 20}, 181, None),
        (
            {"empty-image": 5, "truncated-image": 15},
            180,
            "10% of what was sent since 2026-05-01 12:00 UTC could not be read, 20 of 200 images (15 truncated-image, "
            "5 empty-image): files are cut off on their way",
        ),
        ({"unsupported-image-format": 500}, 0, "100% of what was sent"),
        ({"a-reason-of-tomorrow": 500}, 500, "look at the client"),
    ],
)
def test_what_cannot_be_read_is_a_fault_once_it_is_much(
    by_reason: dict[str, int], answered: int, words: str | None
) -> None:
    said = unreadable(Failures(by_reason, answered + sum(by_reason.values()), NOON), SETTINGS.decode_failure_floor)
    assert said is words is None or (said is not None and words is not None and words in said)


def test_the_share_of_uploads_that_may_fail_is_a_setting() -> None:
    some, all_of_them = Failures({"invalid-image": 200}, 1000, NOON), Failures({"invalid-image": 200}, 200, NOON)
    assert unreadable(some, 0.2) is not None
    assert unreadable(some, 0.21) is None
    assert unreadable(some, 1.0) is None
    assert unreadable(all_of_them, 1.0) is not None


def test_a_healthy_stream_breaks_no_rule_and_gives_no_note(world: Any) -> None:
    """Windows drawn from what the reference was drawn from: some is grey, small, in a rare format or broken."""
    rng = np.random.default_rng(0)
    kinds = [
        ("JPEG", "RGB", "640x480"), ("PNG", "RGB", "500x333"), ("JPEG", "L", "640x480"), ("WEBP", "RGB", "96x64"),
        ("TIFF", "CMYK", "3000x2000"),
    ]  # fmt: skip
    shares = (0.6, 0.25, 0.06, 0.05, 0.04)

    def drawn(rows: int) -> Collection:
        counts = rng.multinomial(rows, shares)
        mixes: list[dict[str, float]] = [{}, {}, {}]
        for kind, count in zip(kinds, counts, strict=True):
            for mix, each in zip(mixes, kind, strict=True):
                mix[each] = mix.get(each, 0.0) + count / rows
        return came(*mixes)

    calm = replace(world.reference(), side=224)

    for rows in (200, 500):
        for _ in range(250):
            # A small reference is the hard case: of what is rare it may have nothing.
            reference = replace(calm, collection=drawn(40))
            broken = int(rng.binomial(rows, 0.03))
            facts = examine(
                reference, window_that(drawn(rows), rows), Failures({"empty-image": broken}, rows), SETTINGS
            )
            assert (facts.faults, facts.notes) == ((), ())


def test_a_drift_that_one_source_carries_is_said_to_be_its(world: Any) -> None:
    calm, drifted = world.scores(world.traffic[:320]), world.scores(world.traffic[320:400], turned)
    rows = world.traffic[:400]
    scores = world.scores(rows)
    for name in ("probabilities", "embedding", "properties"):
        getattr(scores, name)[:] = np.concatenate([getattr(calm, name), getattr(drifted, name)])
    sources = (("north", "south") * 160) + ("gate",) * 80
    window = replace(window_that(came()), scores=scores, sources=sources)
    facts = examine(world.reference(), window, NONE_FAILED, SETTINGS)
    assert set(facts.unlike) == {"north", "south", "gate"}
    assert facts.unlike["gate"] > 0.85
    assert max(facts.unlike["north"], facts.unlike["south"]) < 0.6
    (note,) = facts.notes
    assert note.startswith("what changed comes from 'gate' (20% of the window): ")

    alike = replace(window, scores=world.scores(rows))
    facts = examine(world.reference(), alike, NONE_FAILED, SETTINGS)
    assert all(0.35 < unlike < 0.65 for unlike in facts.unlike.values())
    assert facts.notes == ()
    assert examine(world.reference(), replace(window, sources=("gate",) * 400), NONE_FAILED, SETTINGS).unlike == {}


def test_a_check_keeps_a_bounded_part_of_the_facts(world: Any) -> None:
    received = came(sizes=MANY, sources={f"client {number}": 1 / 500 for number in range(500)})
    document = examine(world.reference(), window_that(received), NONE_FAILED, SETTINGS).document()
    assert len(document["sizes"]) == len(document["sources"]) == MOST_ENTRIES
    assert document["reference"] is None
    json.dumps(document, allow_nan=False)


# --- whole checks ----------------------------------------------------------------------------------------


def reject(engine: sa.Engine, version: str, images: int, reason: str, at: datetime | None = None) -> None:
    minute = (at or datetime.now(UTC)).replace(second=0, microsecond=0)
    ledger.rejected_images.add(engine, [RejectedImages(version, minute, reason, images)])


@pytest.mark.usefixtures("without_reports")
def test_uploads_that_cannot_be_read_are_a_fault_of_collection(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    engine = sqlite
    model = deploy(engine, watched_settings)
    other = "20200101-000000-00000"
    model.send()
    reject(engine, model.version, 500, "empty-image", datetime.now(UTC) - timedelta(hours=1))  # before the window
    reject(engine, other, 500, "empty-image")
    reject(engine, model.version, 33, "truncated-image")
    check = run_check(engine, watched_settings)
    assert check.verdict == "ok", "33 of 333 are not a tenth"
    assert check.document()["collection"]["failures"]["by_reason"] == {"truncated-image": 33}

    reject(engine, model.version, 27, "truncated-image")
    reject(engine, model.version, 15, "too-many-bytes")
    check = run_check(engine, watched_settings)
    assert (check.verdict, len(check.causes)) == ("collection_fault", 1)
    assert "75 of 375 images (60 truncated-image, 15 too-many-bytes)" in check.causes[0].why
    failures = check.document()["collection"]["failures"]
    assert (failures["images"], failures["uploads"], failures["share"]) == (75, 375, 0.2)
    assert not check.retrain.due
    page = generate_latest(registry(lambda: engine, WatchMetrics(watched_settings), watched_settings.name)).decode()
    assert 'perennial_window_decode_failures{reason="truncated-image"} 60.0' in page
    assert 'perennial_window_decode_failures{reason="empty-image"} 0.0' in page


def test_where_nothing_can_be_read_the_check_says_so_though_there_are_no_rows(
    engine: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(engine, watched_settings)
    reject(engine, model.version, 400, "empty-image", datetime.now(UTC) - timedelta(hours=1))
    check = run_check(engine, watched_settings)
    assert [cause.cause for cause in check.causes] == ["collection_fault", "insufficient_data"]
    assert "100% of what was sent could not be read, 400 of 400 images (400 empty-image)" in check.causes[0].why

    model.record(model.world.scores(model.world.traffic[:250]), precision="bfloat16")  # which the bundle has not
    reject(engine, model.version, 250, "empty-image")
    check = run_check(engine, watched_settings)
    assert [cause.cause for cause in check.causes] == ["collection_fault", "insufficient_data"]
    assert "250 of 500 images" in check.causes[0].why


@pytest.mark.usefixtures("without_reports")
def test_failures_are_counted_since_the_minute_in_which_the_window_began(engine: sa.Engine, deploy: Any) -> None:
    from perennial.settings import load_settings

    model = deploy(engine, load_settings(name="digits"))
    scores = model.world.scores(model.world.traffic[:4])
    began = NOON + timedelta(seconds=30)
    model.record(scores, at=NOON - timedelta(seconds=1))
    model.record(scores, at=NOON + timedelta(seconds=10))
    model.record(scores, at=began)
    for minutes, images in ((-1, 1), (0, 20), (1, 300)):
        reject(engine, model.version, images, "invalid-image", NOON + timedelta(minutes=minutes))
    window = window_of(ledger.predictions.latest(engine, model.version, 4))
    assert window.start == began
    found = read_failures(engine, model.version, window)
    assert (found.since, found.images, found.uploads) == (NOON, 320, 328)
    assert ledger.predictions.latest(engine, model.version, 4)[0].prediction.id < new_id()


@pytest.mark.usefixtures("without_reports")
def test_a_window_is_held_against_how_the_reference_came(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(sqlite, watched_settings, header=ImageHeader("PNG", "L", 8, 8))
    scores = model.world.scores(model.world.traffic[:300])
    model.record(scores.take(np.arange(200)), source="cam-1")
    model.record(scores.take(np.arange(200, 300)), header=ImageHeader("JPEG", "L", 640, 480), source="cam-2")
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.causes) == ("ok", ())
    found = check.document()["collection"]
    assert found["reference"] == {"formats": {"PNG": 1.0}, "modes": {"L": 1.0}, "sizes": {"8x8": 1.0}}
    assert found["formats"] == {"PNG": pytest.approx(2 / 3), "JPEG": pytest.approx(1 / 3)}
    assert found["sources"] == {"cam-1": pytest.approx(2 / 3), "cam-2": pytest.approx(1 / 3)}
    assert set(found["source_unlike"]) == {"cam-1", "cam-2"}
    assert [note[:18] for note in found["notes"]] == ["the source 'cam-1'"]
    assert ledger.checks.latest(sqlite, "digits")[0].detail["collection"] == found

    model.record(scores, header=ImageHeader("JPEG", "L", 640, 480))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "ok"
    assert [note.split(" ")[0] for note in check.document()["collection"]["notes"]] == ["formats", "sizes"]
