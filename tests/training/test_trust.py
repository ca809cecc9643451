"""Too good to be true: leaks, shuffled labels, and images that the backbone takes for one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from perennial.bundle import Estimate
from training import leaks, trust
from training.datasets import LabelledImages, Row, load
from training.embedding_duplicates import embedding_duplicates
from training.glance import Metadata
from training.label_shuffle import label_shuffle_control, shuffle_findings, suspiciously_good

Floats = NDArray[np.float32]


def files(count: int = 200, seed: int = 0) -> tuple[list[Metadata], list[str]]:
    """Of two classes that differ in nothing."""
    random = np.random.default_rng(seed)
    made = [
        Metadata("JPEG", "RGB", int(width), int(height), 50_000, int(quality), bool(exif))
        for width, height, quality, exif in zip(
            random.integers(300, 900, count),
            random.choice([300, 400, 500], count),
            random.choice([75, 90, 95], count),
            random.integers(0, 2, count),
            strict=True,
        )
    ]
    return made, [("ants", "bees")[at % 2] for at in range(count)]


def rows_of(labels: list[str], held_out: list[bool]) -> list[Row]:
    return [
        Row(f"/data/{at}", label, f"{at:064x}", "test" if out else "train")
        for at, (label, out) in enumerate(zip(labels, held_out, strict=True))
    ]


def clusters(count: int = 300, classes: int = 3, width: int = 64) -> tuple[Floats, list[int], list[bool]]:
    """Features that tell the class, and labels; every third row is held out."""
    random = np.random.default_rng(1)
    labels = [at % classes for at in range(count)]
    centres = random.normal(size=(classes, width)) * 2
    features = centres[labels] + random.normal(size=(count, width))
    return features.astype(np.float32), labels, [at // classes % 3 == 0 for at in range(count)]


# --- metadata --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_differ_in_nothing_are_not_accused(seed: int) -> None:
    assert leaks.findings(*files(seed=seed)) == ()


@pytest.mark.parametrize(
    ("attribute", "change", "words"),
    [
        ("file format", {"format": "PNG", "quality": None}, "100% of 'bees' have file format JPEG, 0% of the others"),
        ("JPEG quality", {"quality": 40}, "100% of 'ants' have JPEG quality 40, 0% of the others"),
        ("pixel mode", {"mode": "L"}, "100% of 'ants' have pixel mode L, 0% of the others"),
        ("image size", {"width": 224, "height": 224}, "100% of 'ants' have image size 224 x 224, 0% of the others"),
    ],
)
def test_the_attribute_that_tells_the_class_is_named(attribute: str, change: dict[str, object], words: str) -> None:
    made, labels = files()
    made = [
        replace(file, **change) if label == "ants" else file  # type: ignore[arg-type]
        for file, label in zip(made, labels, strict=True)
    ]
    (finding,) = leaks.findings(made, labels)
    assert finding.kind == "metadata_leak"
    assert finding.message.startswith(f"{attribute} alone tells the class of ")
    assert words in finding.message


def test_one_class_of_ten_that_has_a_format_of_its_own_is_named() -> None:
    made, _ = files(400)
    labels = [f"class {at % 10}" for at in range(400)]
    made = [
        replace(file, format="BMP", quality=None) if label == "class 7" else file
        for file, label in zip(made, labels, strict=True)
    ]
    (finding,) = leaks.findings(made, labels)
    assert "tells 'class 7' from all other classes (100%" in finding.message


def test_a_leak_that_is_only_likely_is_found_and_a_slight_difference_is_not() -> None:
    made, labels = files(400)
    random = np.random.default_rng(0)

    def mixed(share: float) -> list[Metadata]:
        return [
            replace(file, format="PNG" if (random.random() < share) == (label == "ants") else "JPEG")
            for file, label in zip(made, labels, strict=True)
        ]

    assert len(leaks.findings(mixed(0.9), labels)) == 1
    assert leaks.findings(mixed(0.6), labels) == ()


def test_a_planted_png_class_is_found_when_a_folder_is_loaded(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label, suffix in (("cat", "png"), ("dog", "jpg")):
        (tmp_path / label).mkdir()
        for number in range(25):
            pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.{suffix}")
    images = load(str(tmp_path), validation=0.2, test=0.3, seed=0)
    features = random.normal(size=(len(images.rows), 32)).astype(np.float32)
    (finding,) = trust.findings(images, images.rows, features, seed=0)
    assert finding.kind == "metadata_leak"
    assert "of 'cat' have file format PNG" in finding.message or "of 'dog' have file format JPEG" in finding.message


# --- shuffled labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_are_at_chance_on_clean_data(seed: int) -> None:
    features, labels, held_out = clusters()
    control = label_shuffle_control(features, labels, held_out, seed=seed)
    assert control is not None
    assert not control.above_chance
    assert control.accuracy == pytest.approx(control.chance, abs=0.03)
    assert shuffle_findings(control) == ()


def test_shuffled_labels_of_groups_that_straddle_the_split_are_predicted() -> None:
    features, labels, held_out = clusters()
    random = np.random.default_rng(2)
    groups = list(range(len(labels)))
    train = [at for at in groups if not held_out[at]]
    for at in [at for at in groups if held_out[at]][:40]:  # of 100: each a copy of a training row
        groups[at] = train[at]
        features[at] = features[groups[at]] + 0.05 * random.normal(size=features.shape[1])
    control = label_shuffle_control(features, labels, held_out, groups=groups, seed=0)
    assert control is not None
    assert control.above_chance
    assert (control.accuracy - control.chance) / (1 - control.chance) > 0.15
    (finding,) = shuffle_findings(control)
    assert "shuffled labels" in finding.message
    alone = label_shuffle_control(features, labels, held_out, seed=0)
    assert alone is not None
    assert not alone.above_chance  # by image, copies get lots of their own


def test_too_few_rows_are_not_judged() -> None:
    features, labels, held_out = clusters(12)
    assert label_shuffle_control(features, labels, held_out) is None
    assert shuffle_findings(None) == ()


def test_an_accuracy_that_is_too_good_is_looked_at_and_a_good_one_is_not() -> None:
    perfect, good = Estimate(value=1.0, low=0.95, high=1.0), Estimate(value=0.96, low=0.92, high=0.98)
    assert suspiciously_good(good, 200, Estimate(value=0.97, low=0.93, high=0.99)) == ()
    (finding,) = suspiciously_good(perfect, 60)
    assert "100.0% on 60 images" in finding.message
    assert "wrong once in 20" in finding.message
    near = Estimate(value=0.998, low=0.994, high=1.0)
    assert suspiciously_good(near, 4_000, Estimate(value=0.70, low=0.68, high=0.72)) == ()
    (finding,) = suspiciously_good(near, 4_000, Estimate(value=0.998, low=0.993, high=1.0))
    assert "a simple model on colours" in finding.message


# --- embeddings ------------------------------------------------------------------------------------------


def test_a_held_out_row_that_lies_on_a_training_row_is_found_and_no_other() -> None:
    features, labels, held_out = clusters()
    rows = rows_of([f"class {label}" for label in labels], held_out)
    assert embedding_duplicates(features, rows, groups={}) == ()
    random = np.random.default_rng(3)
    features[0] = features[12] + 0.3 * random.normal(size=64)
    (pair,) = embedding_duplicates(features, rows, groups={})
    assert (pair.held_out, pair.trained) == (rows[0], rows[12])
    known = {rows[0].digest: "one group", rows[12].digest: "one group"}
    assert embedding_duplicates(features, rows, groups=known) == ()


def test_rows_are_compared_block_by_block_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, held_out = clusters()
    features[3:9:3] = features[12:18:3] + 0.1
    rows = rows_of([str(label) for label in labels], [out or at in (3, 6) for at, out in enumerate(held_out)])
    whole = embedding_duplicates(features, rows, groups={})
    monkeypatch.setattr("training.embedding_duplicates._AT_ONCE", 17)
    by_block = embedding_duplicates(features, rows, groups={})
    assert [(pair.held_out, pair.trained) for pair in by_block] == [(pair.held_out, pair.trained) for pair in whole]
    assert whole


# --- all together ----------------------------------------------------------------------------------------


def test_clean_images_give_no_finding(shape_images: LabelledImages) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(len(shape_images.rows), 64)).astype(np.float32)
    good = Estimate(value=0.94, low=0.8, high=0.98)
    assert trust.findings(shape_images, shape_images.rows, features, seed=0, accuracy=good) == ()


def test_captures_have_no_metadata_and_are_not_asked_for_any(shape_images: LabelledImages) -> None:
    capture = Row("file:///capture", "disc", "f" * 64, "train", origin="capture")
    images = replace(shape_images, rows=(*shape_images.rows, capture))
    features = np.random.default_rng(0).normal(size=(len(images.rows), 64)).astype(np.float32)
    assert trust.findings(images, images.rows, features, seed=0) == ()
