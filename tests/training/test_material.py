"""What a retrain reads again: in which split an image is that the champion knows, and one that it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from perennial.bundle import Bundle
from perennial.images import ImageLimits
from perennial.settings import Settings
from training import datasets
from training.datasets import LabelledImages
from training.material import original_data, pinned_rows


@pytest.fixture(scope="module")
def grown(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion's images, of every other one a copy in another format and size, and a few new ones."""
    folder = tmp_path_factory.mktemp("grown") / "data"
    shutil.copytree(shapes, folder)
    for path in sorted(shapes.rglob("*.png"))[::2]:
        copy = Image.open(path).resize((70, 70), Image.Resampling.BICUBIC)
        copy.save(folder / path.parent.name / f"{path.stem}-copy.jpg", quality=95)
    for number in range(6):
        path = folder / "square" / f"new-{number}.png"
        Image.effect_noise((56, 56), 20.0 + 10 * number).convert("RGB").save(path)
    return folder


def read_again(bundle: Bundle, data: Path, settings: Settings) -> LabelledImages:
    retrain = settings.retrain.model_copy(update={"data": str(data)})
    return original_data(bundle, settings.model_copy(update={"retrain": retrain}), ImageLimits())


def test_a_copy_of_an_image_that_the_champion_knows_is_in_the_split_of_that_image(
    shape_bundle: Bundle, grown: Path, settings: Settings
) -> None:
    images = read_again(shape_bundle, grown, settings)
    split = {row.location: row.split for row in images.rows}
    copies = [location for location in split if location.endswith("-copy.jpg")]
    assert len(copies) == 30
    assert len(images.groups) >= 60  # each is seen to be a copy
    assert all(split[copy] == split[copy.replace("-copy.jpg", ".png")] for copy in copies)
    assert {split[copy] for copy in copies} == {"train", "validation", "test"}
    assert all(row.reference == (row.split != "train") for row in images.rows)
    # Read as new data, groups would have been ranked anew.
    anew = datasets.load(str(grown), validation=0.15, test=0.15, seed=shape_bundle.manifest.seed)
    assert any(row.split != split[row.location] for row in anew.rows if row.location in copies)


def test_no_group_straddles_a_split_and_a_known_image_stays_where_it_was(
    shape_bundle: Bundle, grown: Path, settings: Settings
) -> None:
    images = read_again(shape_bundle, grown, settings)
    pinned = pinned_rows(shape_bundle)
    assert all(row.split == pinned[row.digest].split for row in images.rows if row.digest in pinned)
    splits: dict[str, set[str]] = {}
    for row in images.rows:
        if row.digest in images.groups:
            splits.setdefault(images.groups[row.digest], set()).add(row.split)
    assert splits
    assert all(len(each) == 1 for each in splits.values())
