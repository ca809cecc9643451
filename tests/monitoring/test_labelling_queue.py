"""The images that are asked about first are those that tell the most; out to a file and back, by the command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from monitoring.embedding import unlikeness
from monitoring.labelling_queue import most_informative
from monitoring.window import Scores, Window, read_window, window_of
from perennial import ledger
from perennial.settings import Settings

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
    found = most_informative(world.reference(), mixed, 30)
    assert len({each.prediction_id for each in found}) == 30
    drifted = [int(each.prediction_id[1:]) >= 160 for each in found]
    assert np.mean(drifted) > 0.5  # of a fifth of the window
    assert np.mean([each.doubt for each in found]) > 0.2
    points = mixed.scores.embedding[[int(each.prediction_id[1:]) for each in found]]
    worth = sorted(range(160, 200), key=lambda at: mixed.scores.confidence[at])[:30]
    apart = [
        np.linalg.norm(some[:, None] - some[None], axis=2).mean() for some in (points, mixed.scores.embedding[worth])
    ]
    assert apart[0] > apart[1]


def test_what_has_a_label_or_no_image_is_not_asked_about(world: Any, mixed: Window) -> None:
    labels = tuple("1" if at % 2 else None for at in range(200))
    images = tuple(None if at % 4 == 0 else f"i{at}" for at in range(200))
    found = most_informative(
        world.reference(), replace(mixed, scores=replace(mixed.scores, labels=labels), images=images), 500
    )
    assert {int(each.prediction_id[1:]) % 4 for each in found} == {2}
    assert len(found) == 50
    damaged = mixed.scores.embedding.copy()
    damaged[7] = np.nan
    some = most_informative(world.reference(), replace(mixed, scores=replace(mixed.scores, embedding=damaged)), 500)
    assert "p7" not in {each.prediction_id for each in some}


def perennial(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commands.main", *arguments, "--name", settings.name]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_queue_goes_out_to_a_file_and_labels_come_back(
    tmp_path: Path, watched_settings: Settings, deploy: Any
) -> None:
    engine: sa.Engine = ledger.open_ledger(watched_settings.ledger_url)
    deployed = deploy(engine, watched_settings)
    assert perennial(watched_settings, "labels", "queue").returncode == 4  # no traffic yet
    sent = deployed.send(100)
    file = tmp_path / "to label.csv"
    done = perennial(watched_settings, "labels", "export", str(file), "--count", "30", "--json")
    assert (done.returncode, json.loads(done.stdout)["images"]) == (0, 30), done.stderr
    rows = list(csv.DictReader(file.read_text("utf-8").splitlines()))
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
    assert len(queued) == 79  # who gave a label that is no class yet was asked, and is not asked again
    status = json.loads(perennial(watched_settings, "status", "--json").stdout)
    assert status["window"]["labelled"] == 20
    assert status["new_labels"] == {"images": {"no such class": 1}, "needed": 20, "classes": []}
    assert "no such class (1 of 20)" in perennial(watched_settings, "status").stdout
    studio = tmp_path / "tasks.json"
    assert perennial(watched_settings, "labels", "export", str(studio)).returncode == 0
    assert len(json.loads(studio.read_text("utf-8"))) == 79
    engine.dispose()
