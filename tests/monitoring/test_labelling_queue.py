"""The images that are asked about first are those that tell the most; out to a file and back, by the command."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats
from typer.testing import CliRunner

from commands.labels import app
from monitoring.embedding import unlikeness
from monitoring.labelling_queue import Candidate, to_label
from monitoring.window import Scores, Window, read_window, window_of
from perennial import ledger
from perennial.settings import Settings
from tests.in_process import perennial_here

ARRAYS = ("probabilities", "embedding", "properties", "predicted", "confidence")


@pytest.fixture
def mixed(world: Any) -> Window:
    """200 images of which the last 40 are turned."""
    rows = world.traffic[:200]
    before, after = world.scores(rows[:160], labelled=False), world.scores(rows[160:], turned, labelled=False)
    both = Scores(
        *(np.concatenate([getattr(each, name) for each in (before, after)]) for name in ARRAYS),
        before.labels + after.labels,
        before.digests + after.digests,
    )
    ids, images = (tuple(f"{letter}{at}" for at in range(200)) for letter in "pi")
    return replace(window_of([]), rows=200, scores=both, ids=ids, images=images)


def most_informative(world: Any, window: Window, count: int) -> list[Candidate]:
    found = to_label(world.reference(), window, count, at_random=0, key="v1")
    assert {each.chosen for each in found} <= {"informative"}
    return found


def place(candidate: Candidate) -> int:
    return int(candidate.prediction_id[1:])


def chosen(candidates: list[Candidate]) -> list[str]:
    return [each.chosen for each in candidates]


def turned(images: Any) -> Any:
    return np.rot90(images, axes=(1, 2)).copy()


def test_rows_that_are_unlike_the_reference_are_told_from_the_others(world: Any, mixed: Window) -> None:
    found = unlikeness(world.reference().scores.embedding, mixed.scores.embedding)
    assert found.shape == (200,)
    assert ((found >= 0) & (found <= 1)).all()
    assert np.median(found[160:]) > 0.85
    assert 0.3 < np.median(found[:160]) < 0.7
    assert (unlikeness(mixed.scores.embedding[:5], mixed.scores.embedding) == 0.5).all()  # too few to tell


def test_drifted_images_come_first_and_not_all_alike(world: Any, mixed: Window) -> None:
    found = most_informative(world, mixed, 30)
    assert len({each.prediction_id for each in found}) == 30
    drifted = [place(each) >= 160 for each in found]
    assert np.mean(drifted) > 0.5  # of a fifth of the window
    assert np.mean([each.doubt for each in found]) > 0.2
    points = mixed.scores.embedding[[place(each) for each in found]]
    worth = sorted(range(160, 200), key=lambda at: mixed.scores.confidence[at])[:30]
    apart = [
        np.linalg.norm(some[:, None] - some[None], axis=2).mean() for some in (points, mixed.scores.embedding[worth])
    ]
    assert apart[0] > apart[1]


def test_what_has_a_label_or_no_image_is_not_asked_about(world: Any, mixed: Window) -> None:
    labels = tuple("1" if at % 2 else None for at in range(200))
    images = tuple(None if at % 4 == 0 else f"i{at}" for at in range(200))
    some = replace(mixed, scores=replace(mixed.scores, labels=labels), images=images)
    for at_random in (0, 0.5, 1):
        found = to_label(world.reference(), some, 500, at_random=at_random, key="v1")
        assert {place(each) % 4 for each in found} == {2}
        assert len(found) == 50
        assert chosen(found).count("random") == 50 * at_random
    every = replace(mixed, scores=replace(mixed.scores, labels=("1",) * 200))
    assert to_label(world.reference(), every, 10, at_random=0.5, key="v1") == []


@pytest.mark.parametrize("scores", ["embedding", "probabilities"])
def test_what_is_not_all_numbers_is_drawn_but_not_called_informative(world: Any, mixed: Window, scores: str) -> None:
    damaged = getattr(mixed.scores, scores).copy()
    damaged[:100] = np.nan
    some = replace(mixed, scores=replace(mixed.scores, **{scores: damaged}))
    assert {place(each) >= 100 for each in most_informative(world, some, 500)} == {True}
    drawn = to_label(world.reference(), some, 500, at_random=1, key="v1")
    assert sorted(map(place, drawn)) == list(range(200))
    unknown = [each.drift if scores == "embedding" else each.doubt for each in drawn if place(each) < 100]
    assert unknown == [0.5] * 100
    assert np.isfinite([(each.drift, each.doubt, each.confidence) for each in drawn]).all()
    both = to_label(world.reference(), some, 200, at_random=0.5, key="v1")
    assert chosen(both).count("random") == 100
    assert {place(each) >= 100 for each in both if each.chosen == "informative"} == {True}


@pytest.mark.parametrize(("at_random", "expected"), [(0, 0), (0.1, 2), (0.25, 5), (0.5, 10), (0.77, 15), (1, 20)])
def test_the_share_is_kept_and_both_kinds_come_in_turn(
    world: Any, mixed: Window, at_random: float, expected: int
) -> None:
    found = to_label(world.reference(), mixed, 20, at_random=at_random, key="v1")
    assert len({each.prediction_id for each in found}) == 20
    assert chosen(found).count("random") == expected
    for stop in range(1, 21):
        assert abs(chosen(found[:stop]).count("random") - stop * at_random) <= 0.5


def test_the_informative_ones_are_the_most_informative_of_what_was_not_drawn(world: Any, mixed: Window) -> None:
    found = to_label(world.reference(), mixed, 40, at_random=0.5, key="v1")
    assert chosen(found) == ["informative", "random"] * 20
    drawn = {place(each) for each in found if each.chosen == "random"}
    labels = tuple("1" if at in drawn else None for at in range(200))
    rest = most_informative(world, replace(mixed, scores=replace(mixed.scores, labels=labels)), 20)
    assert [each for each in found if each.chosen == "informative"] == rest


def test_every_image_is_drawn_as_often_as_any_other(world: Any, mixed: Window) -> None:
    small = replace(
        mixed, scores=mixed.scores.take(np.arange(150, 200)), ids=mixed.ids[150:], images=mixed.images[150:]
    )
    times, first = np.zeros(50), np.zeros(50)
    for key in range(60):
        found = to_label(world.reference(), small, 20, at_random=0.5, key=str(key))
        drawn = [place(each) - 150 for each in found if each.chosen == "random"]
        times[drawn] += 1
        first[drawn[0]] += 1
    expected = 60 * 10 / 50
    # A draw without replacement scatters less than chi-squared, by the share that is left.
    assert stats.chi2.sf(((times - expected) ** 2 / expected).sum() / 0.8, 49) > 0.01
    assert first.max() <= 6
    drifted = times[10:].mean() / times.mean()  # 40 of the 50 are turned, and come first elsewhere
    assert 0.9 < drifted < 1.1


def test_the_draw_stays_until_something_is_labelled_and_then_goes_on(world: Any, mixed: Window) -> None:
    def drawn(window: Window, count: int = 20, key: str = "v1") -> list[str]:
        found = to_label(world.reference(), window, count, at_random=1, key=key)
        return [each.prediction_id for each in found]

    once = drawn(mixed)
    assert drawn(mixed) == once
    assert drawn(mixed, 30)[:20] == once
    assert drawn(mixed, key="v2") != once
    turned_round = replace(
        mixed, scores=mixed.scores.take(np.arange(200)[::-1]), ids=mixed.ids[::-1], images=mixed.images[::-1]
    )
    assert drawn(turned_round) == once  # by what the images are, not by where they stand
    labels = tuple("1" if f"p{at}" in once[:10] else None for at in range(200))
    assert drawn(replace(mixed, scores=replace(mixed.scores, labels=labels)))[:10] == once[10:]


def perennial(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return perennial_here(*arguments, "--name", settings.name, cwd=Path.cwd())


def test_the_queue_goes_out_to_a_file_and_labels_come_back(
    tmp_path: Path, watched_settings: Settings, deploy: Any
) -> None:
    engine: sa.Engine = ledger.open_ledger(watched_settings.ledger_url)
    deployed = deploy(engine, watched_settings)
    assert perennial(watched_settings, "labels", "queue").returncode == 4  # no traffic yet
    sent = deployed.send(100)
    file = tmp_path / "to label.csv"
    done = perennial(watched_settings, "labels", "export", str(file), "--count", "30", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "model_version": deployed.version, "file": str(file), "images": 30, "random": 15
    }  # fmt: skip
    rows = list(csv.DictReader(file.read_text("utf-8").splitlines()))
    assert [row["chosen"] for row in rows] == ["informative", "random"] * 15
    by_image = dict(zip([f"file:///captures/{at}.png" for at in range(100)], sent.labels, strict=True))
    for row in rows[:20]:
        row["label"] = by_image[row["image"]]
    rows[20]["label"], rows[21]["label"], rows[21]["prediction_id"] = "no such class", "1", "no such prediction"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = perennial(watched_settings, "labels", "import", str(file), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {
        "labels": 22, "accepted": 20, "kept": 1, "changed": 21, "unknown_predictions": ["no such prediction"],
        "unknown_labels": ["no such class"],
    }  # fmt: skip
    window = read_window(engine, deployed.version, 1000, 1000)
    assert sum(label is not None for label in window.scores.labels) == 20
    assert all(
        by_image[str(image)] == label for image, label in zip(window.images, window.scores.labels, strict=True) if label
    )
    again = perennial(watched_settings, "labels", "import", str(file), "--json")
    assert json.loads(again.stdout)["changed"] == 0
    queued = json.loads(perennial(watched_settings, "labels", "queue", "--count", "200", "--json").stdout)["queue"]
    assert [each["chosen"] for each in queued] == ["informative", "random"] * 39 + ["informative"]
    assert len(queued) == 79  # who gave a label that is no class yet was asked, and is not asked again
    status = json.loads(perennial(watched_settings, "status", "--json").stdout)
    assert status["window"]["labelled"] == 20
    assert status["new_labels"] == {"images": {"no such class": 1}, "needed": 20, "classes": []}
    assert "no such class (1 of 20)" in perennial(watched_settings, "status").stdout
    studio = tmp_path / "tasks.json"
    assert perennial(watched_settings, "labels", "export", str(studio)).returncode == 0
    assert len(json.loads(studio.read_text("utf-8"))) == 79
    assert json.loads(studio.read_text("utf-8"))[1]["data"]["chosen"] == "random"
    shown = perennial(watched_settings, "labels", "queue", "--count", "5", "--random", "1")
    assert f"perennial labels export to-label.csv --name {watched_settings.name}" in shown.stderr
    table = shown.stdout.splitlines()
    assert table[0].split()[0] == "chosen"
    assert [line.split()[0] for line in table[1:]] == ["random"] * 5
    ids = {each["prediction_id"]: each["image"] for each in queued}
    assert all(ids[line.split()[-2]] == line.split()[-1] for line in table[1:])  # in a pipe nothing is cut off
    engine.dispose()


@pytest.mark.parametrize("command", [["queue"], ["export", "to-label.csv"]])
@pytest.mark.parametrize("share", ["1.1", "-0.1", "nan", "half"])
def test_a_share_that_is_none_is_refused(home: Path, command: list[str], share: str) -> None:
    done = CliRunner().invoke(app, [*command, "--random", share])
    assert done.exit_code == 2
    assert "--random" in done.output
