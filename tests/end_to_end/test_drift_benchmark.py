"""The drift benchmark draws what it says it draws, and its methods see what cannot be overlooked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import attribution, cost, delay, detection, false_alarms
from benchmarks.drift.__main__ import main
from benchmarks.drift.methods import METHODS, Sides
from benchmarks.drift.shifts import CAMERA, FAILING_LOUDLY
from benchmarks.drift.worlds import World, joined
from monitoring.verdict import Verdict
from monitoring.window import Scores
from perennial.graph import PROPERTIES
from perennial.settings_sections import MonitorSettings

CLASSES = ("a", "b", "c")
IMAGES = 600


def scores(random: np.random.Generator, truth: np.ndarray, *, moved: float = 0.0, change: str = "") -> Scores:  # type: ignore[type-arg]
    """A model that is right and sure of 600 images of three classes."""
    logits = 3 * np.eye(3)[truth] + random.normal(moved, 1.0, (len(truth), 3)) * [1, 0.5, 0.2]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    guessed = probabilities.argmax(axis=1)
    embedding = random.normal(moved, 1.0, (len(truth), 8)) + 2 * np.eye(8)[truth]
    return Scores(
        probabilities.astype(np.float32),
        embedding.astype(np.float32),
        random.normal(0.5, 0.1, (len(truth), len(PROPERTIES))).astype(np.float32),
        np.array(CLASSES, dtype=object)[guessed],
        probabilities.max(axis=1).astype(np.float32),
        tuple(CLASSES[at] for at in truth),
        tuple(f"{change} {at}" for at in range(len(truth))),
    )


@pytest.fixture(scope="module")
def small() -> World:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, IMAGES)
    changes = ["", *FAILING_LOUDLY, *CAMERA, attribution.SKETCHES]
    found = {
        name: scores(np.random.default_rng(1), truth, moved=0.0 if not name else 2.0, change=name) for name in changes
    }
    components = {name: each.embedding[:, :4] for name, each in found.items()}
    return World("small", CLASSES, np.array([CLASSES[at] for at in truth]), found, components)


@pytest.mark.parametrize("name", [*FAILING_LOUDLY, *CAMERA])
def test_a_change_changes_images_and_keeps_their_form(name: str) -> None:
    random = np.random.default_rng(0)
    smooth = np.linspace(40, 200, 32)[None, :, None, None] + random.uniform(-30, 30, (4, 1, 32, 3)).cumsum(axis=2) / 8
    pixels = smooth.clip(0, 255).astype(np.uint8)
    before = pixels.copy()
    change = {**FAILING_LOUDLY, **CAMERA}[name]
    once, again = (change(pixels, np.random.default_rng(5)) for _ in range(2))
    assert (once.shape, once.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(once, again)
    assert np.array_equal(pixels, before)
    assert not np.array_equal(once, pixels)


@pytest.mark.parametrize("reference", [detection.EQUAL, detection.FULL])
@pytest.mark.parametrize("shift", list(detection.SHIFTS))
def test_a_window_and_its_reference_share_no_image(small: World, shift: str, reference: str) -> None:
    sides = detection.draw(small, 200, reference, shift, 0.5, seed=3)
    assert sides is not None
    numbers = [{digest.split(" ")[-1] for digest in side.digests} for side in (sides.reference.scores, sides.window)]
    assert not numbers[0] & numbers[1]
    change, classes = detection.SHIFTS[shift]
    whole = IMAGES - (len(sides.window) if classes == detection.ONE_CLASS else 200)
    assert len(sides.reference.scores) == (200 if reference == detection.EQUAL else whole)
    assert len(sides.before) == len(sides.reference.scores)
    assert len(sides.now) == len(sides.window)
    if not classes:
        assert len(sides.window) == 200
    if classes == detection.ONE_CLASS:
        assert len(sides.window) == int((small.labels == "a").sum()) // 2
    if change:
        moved = np.mean([digest.startswith(change) for digest in sides.window.digests])
        assert moved == pytest.approx(0.5, abs=0.01)
    if classes == detection.ONE_CLASS:
        assert set(sides.window.labels) == {"a"}
    if classes == detection.KNOCK_OUT:
        full = detection.draw(small, 200, reference, shift, 1.0, seed=3)
        assert full is not None
        assert "a" not in full.window.labels
    if classes != detection.ONE_CLASS:
        assert detection.draw(small, 500, detection.EQUAL, shift, 0.5, seed=3) is None  # there are not so many


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_sees_a_large_shift_and_not_one_that_is_not_there(small: World, name: str) -> None:
    def alarms(shift: str, seeds: range) -> list[bool]:
        drawn = [detection.draw(small, 100, detection.EQUAL, shift, 1.0, seed) for seed in seeds]
        return [METHODS[name](sides) for sides in drawn if isinstance(sides, Sides)]

    if name.startswith("Evidently"):  # it counts columns: any of many, or half of them, which is too few and too many
        assert any(alarms("noise large", range(3))) == name.endswith("any column")
        return
    assert all(alarms("noise large", range(3)))
    assert sum(alarms(detection.NONE, range(8))) <= 2


def test_a_cell_counts_alarms_of_trials(small: World) -> None:
    told: list[str] = []
    cells = detection.measure(
        small, sizes=[100], references=[detection.EQUAL], shifts=[detection.NONE, "noise large"], seeds=2, clean=3,
        methods=["softmax KS (BBSDs)"], jobs=1, say=told.append,
    )  # fmt: skip
    assert [(cell.shift, cell.delta, cell.trials) for cell in cells] == [
        ("none", 0.0, 3), ("noise large", 0.1, 2), ("noise large", 0.5, 2), ("noise large", 1.0, 2),
    ]  # fmt: skip
    assert cells[-1].alarms == 2
    assert detection.summary(cells)[-1].startswith("softmax KS (BBSDs)")
    assert len(told) == 4


def test_scenarios_are_what_they_are_called(small: World) -> None:
    random, rows = np.random.default_rng(0), np.arange(400)
    strong = attribution.window(small, "prior shift, strong", rows, random, 150)
    assert np.mean([label == "a" for label in strong.labels]) > 0.5
    swapped = attribution.window(small, "labels swapped", rows, random, 100)
    plain = small.scores[""].take(rows[:100])
    assert {(old, new) for old, new in zip(plain.labels, swapped.labels, strict=True)} == {
        ("a", "b"),
        ("b", "a"),
        ("c", "c"),
    }
    half = attribution.window(small, "half photos, half sketches", rows, random, 100)
    assert sum(digest.startswith(attribution.SKETCHES) for digest in half.digests) == 50
    for scenario in attribution.RIGHT:
        assert len(attribution.window(small, scenario, rows, random, 100)) == pytest.approx(100, abs=1)
    named = attribution.measure(small, rows=300, scenarios=["labels swapped"], seeds=2, jobs=1, say=lambda line: None)
    assert [(each.right, each.verdict, each.count, each.trials) for each in named] == [
        (Verdict.CONCEPT_DRIFT, Verdict.CONCEPT_DRIFT, 2, 2)
    ]
    assert attribution.summary(named) == ["small: the cause is named rightly in 2 of 2 drifted windows (100.0%)"]


def test_false_alarms_are_counted_beside_the_rate_that_is_stated(small: World) -> None:
    (found,) = false_alarms.measure(small, sizes=[200], repeats=12, jobs=2, say=lambda line: None)
    assert (found.rows, found.trials) == (200, 12)
    assert found.alarms <= 1
    assert found.low <= found.alarms / 12 <= found.high
    (line,) = false_alarms.summary([found])
    assert f"{found.alarms} alarms in 12 clean windows" in line
    assert found.stated == pytest.approx(6 * MonitorSettings().alpha)  # with labels: all six families


def test_a_slower_change_is_told_later(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delay, "CHANGES", ("blur",))
    monkeypatch.setattr(delay, "SHARES", (1.0,))
    monkeypatch.setattr(delay, "RAMPS", (1, 20))
    sudden, slow = delay.measure(small, rows=200, seeds=1, jobs=1, say=lambda line: None)
    assert (sudden.alarm, sudden.opened) == (1, 2)
    assert 1 <= slow.alarm < slow.opened
    assert slow.opened >= sudden.opened
    assert delay.summary([sudden])[-1].split() == ["at", "once", "2"]


def test_rows_one_after_the_other(small: World) -> None:
    whole = small.scores[""]
    parts = joined([whole.take(np.arange(10)), whole.take(np.arange(10, 25))])
    assert parts.digests == whole.digests[:25]
    assert np.array_equal(parts.embedding, whole.embedding[:25])
    assert replace(parts, labels=(None,) * 25).answers.correct.size == 0


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nonesuch"])
    assert (
        "'nonesuch' is none of: detection, false_alarms, attribution, delay, accuracy, cost" in capsys.readouterr().err
    )


def test_the_cost_of_a_check_is_measured_from_the_shell_in_a_ledger_like_a_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_IMAGES", 120)
    monkeypatch.setattr(cost, "_BLOCK", 600)
    monkeypatch.setattr(cost, "_CHECKS", 3)
    monkeypatch.setenv("PERENNIAL_MONITOR__REPORT", "never")  # so that Evidently is imported by the benchmark only
    monkeypatch.setenv("PERENNIAL_MONITOR__MIN_ROWS", "601")  # nothing is drawn: a few checks in a second each
    told: list[str] = []
    (found,) = cost.measure(
        tmp_path, runs=1, say=told.append, windows=[600], ledgers=[1800], databases=["sqlite"]
    )  # fmt: skip
    assert (found.database, found.ledger_rows, found.window, found.runs) == ("sqlite", 1800, 600, 1)
    assert found.verdict == "insufficient_data"
    assert found.seconds > 0.5
    assert 0.5 < found.processor_seconds < 600
    assert 50 < found.mebibytes < 1000
    assert len(told) == 2
