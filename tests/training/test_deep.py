"""What the upper rungs would take, and which views of their images they learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from perennial.images import ImageLimits
from training import backbones, datasets, features
from training.augment import DEFAULT, Augmentation
from training.deep import Trainer
from training.rungs import PARTIAL
from training.selection import select

SIZE = 48
EACH = 30


def trainer_of(folder: Path, work: Path) -> Trainer:
    """On the images in `folder`."""
    images = datasets.load(str(folder), validation=0.2, test=0.1, seed=0)
    backbone = backbones.load("mobilenet_v3_small", "builtin", image_size=SIZE)
    embedded = features.embed(images.rows, backbone, work / "cache", threads=1)
    labels = np.array([images.classes.index(row.label) for row in embedded.rows], np.int64)
    selection = select(embedded.rows, labels.tolist(), images.groups, 0)
    work.joinpath("deep").mkdir()
    return Trainer(
        backbone, embedded, labels, np.ones(len(labels)), len(images.classes), selection, work / "deep",
        work / "checkpoints", seed=0, threads=1, limits=ImageLimits(),
    )  # fmt: skip


def augmentation(folder: Path, work: Path) -> Augmentation:
    """What `folder` is augmented with."""
    return trainer_of(folder, work).augmentation()


def draw(folder: Path, label: str, colour: tuple[int, int, int], shape: list[tuple[float, float]], count: int) -> None:
    folder.joinpath(label).mkdir(parents=True)
    random = np.random.default_rng(sum(label.encode()))
    for number in range(count):
        noise = random.integers(90, 160, (SIZE, SIZE, 3), np.uint8)
        image = Image.fromarray(noise)
        x, y, side = random.integers(2, 14), random.integers(2, 14), random.integers(24, 30)
        ImageDraw.Draw(image).polygon([(x + u * side, y + v * side) for u, v in shape], fill=colour)
        image.save(folder / label / f"{number}.png")


SQUARE = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
RIGHT = [(0.0, 0.0), (1.0, 0.5), (0.0, 1.0)]
LEFT = [(1.0, 0.0), (0.0, 0.5), (1.0, 1.0)]
DOWN = [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0)]


def test_shapes_are_learnt_in_every_tone_and_in_a_mirror(tmp_path: Path) -> None:
    draw(tmp_path / "data", "square", (240, 240, 240), SQUARE, EACH)
    draw(tmp_path / "data", "down", (240, 240, 240), DOWN, EACH)
    found = augmentation(tmp_path / "data", tmp_path)
    assert found == DEFAULT


def test_where_colour_is_all_there_is_colours_and_tones_stay(tmp_path: Path) -> None:
    draw(tmp_path / "data", "red", (230, 60, 60), SQUARE, EACH)
    draw(tmp_path / "data", "blue", (60, 60, 230), SQUARE, EACH)
    found = augmentation(tmp_path / "data", tmp_path)
    assert (found.gray, found.tone) == (0.0, 0.0)
    assert found.mirror


def test_where_a_mirror_image_is_another_class_none_is_shown(tmp_path: Path) -> None:
    draw(tmp_path / "data", "left", (240, 240, 240), LEFT, EACH)
    draw(tmp_path / "data", "right", (240, 240, 240), RIGHT, EACH)
    found = augmentation(tmp_path / "data", tmp_path)
    assert not found.mirror


def test_a_rung_is_timed_on_a_few_images_though_all_of_them_may_be_of_one_class(tmp_path: Path) -> None:
    draw(tmp_path / "data", "square", (240, 240, 240), SQUARE, 90)
    draw(tmp_path / "data", "down", (240, 240, 240), DOWN, 10)
    trainer = trainer_of(tmp_path / "data", tmp_path)
    common = trainer.labels[trainer.selection.learnt] == np.bincount(trainer.labels).argmax()
    at = np.argsort(~common, kind="stable")
    selection = trainer.selection
    assert selection.folds is not None
    trainer.selection = replace(selection, learnt=selection.learnt[at], folds=selection.folds[at])
    assert trainer.expected_seconds(PARTIAL) > 0


def test_learning_from_the_judged_rows_too_is_counted_and_given_up_for_want_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.selection.FEW", 30)
    draw(tmp_path / "data", "square", (240, 240, 240), SQUARE, EACH)
    draw(tmp_path / "data", "down", (240, 240, 240), DOWN, EACH)
    trainer = trainer_of(tmp_path / "data", tmp_path)
    rows = trainer.selection
    assert len(trainer.final_rows) == len(rows.learnt) + len(rows.judged)
    whole = trainer.expected_seconds(PARTIAL)
    assert 0 < trainer.final_seconds(PARTIAL) < whole
    trainer.keep_what_was_tried()
    assert trainer.final_rows.tolist() == rows.learnt.tolist()
    assert trainer.final_seconds(PARTIAL) == 0.0
    assert trainer.expected_seconds(PARTIAL) < whole
