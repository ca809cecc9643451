from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perennial.images import prepare
from perennial.progress import Step
from training import backbones, embedder, features, simple_features
from training.backbones import Backbone
from training.datasets import LabelledImages, load


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbones.load("squeezenet1_1", "none", image_size=48)


def test_an_embedding_is_the_networks_output_on_the_prepared_image(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path
) -> None:
    embedded = features.embed(shape_images.rows, backbone, tmp_path, threads=2)
    assert embedded.rows == shape_images.rows
    assert embedded.features.dtype == np.float32
    assert embedded.features.shape == (60, backbone.width)
    for at in (0, 31, 32, 59):
        pixels = prepare(Path(embedded.rows[at].location).read_bytes(), backbone.rule).pixels
        with torch.inference_mode():
            alone = backbone.network(backbones.normalised(torch.from_numpy(pixels[None].copy()), backbone))
        assert np.allclose(embedded.features[at], alone.numpy()[0], atol=1e-4)


def test_the_second_time_nothing_is_computed(shape_images: LabelledImages, backbone: Backbone, tmp_path: Path) -> None:
    first = features.embed(shape_images.rows, backbone, tmp_path, threads=1)
    calls: list[int] = []
    hook = backbone.network.register_forward_hook(lambda *_: calls.append(1))
    again = features.embed(shape_images.rows, backbone, tmp_path, threads=1)
    hook.remove()
    assert (first.cached, again.cached) == (0, 60)
    assert not calls
    assert np.array_equal(first.features, again.features)


def test_an_embedding_does_not_depend_on_what_else_was_cached(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path
) -> None:
    whole = features.embed(shape_images.rows, backbone, tmp_path / "a", threads=1)
    features.embed(shape_images.rows[:5], backbone, tmp_path / "b", threads=1)
    parts = features.embed(shape_images.rows, backbone, tmp_path / "b", threads=1)
    assert parts.cached == 5
    assert np.array_equal(whole.features, parts.features)


def test_the_cache_is_keyed_by_weights_network_preprocessing_and_arithmetic(backbone: Backbone) -> None:
    others = [
        backbones.load("squeezenet1_1", "none", image_size=48, seed=1),
        backbones.load("squeezenet1_1", "none", image_size=56),
        backbones.load("squeezenet1_0", "none", image_size=48),
        replace(backbone, weights_sha256="ab" * 32),
        replace(backbone, std=(1.0, 1.0, 1.0)),
    ]
    keys = {features.cache_key(one) for one in [backbone, *others]}
    keys.add(features.cache_key(backbone, embedder.TORCH))
    assert len(keys) == 7
    assert features.cache_key(backbones.load("squeezenet1_1", "none", image_size=48)) in keys


def test_other_weights_are_not_served_from_the_cache(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path
) -> None:
    rows = shape_images.rows[:8]
    first = features.embed(rows, backbone, tmp_path, threads=1)
    other = backbones.load("squeezenet1_1", "none", image_size=48, seed=1)
    second = features.embed(rows, other, tmp_path, threads=1)
    assert second.cached == 0
    assert not np.allclose(first.features, second.features)


@pytest.mark.parametrize("damaged", ["index.sqlite", "vectors.f32"])
def test_a_damaged_cache_is_made_anew_and_said_so(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    rows = shape_images.rows[:4]
    first = np.array(features.embed(rows, backbone, tmp_path, threads=1).features)
    (path,) = (tmp_path / "embeddings").glob(f"squeezenet*/{damaged}")
    path.write_bytes(b"scribbled over " * 600)
    with caplog.at_level(logging.WARNING):
        again = features.embed(rows, backbone, tmp_path, threads=1)
    assert "is damaged" in caplog.text
    assert np.array_equal(first, again.features)
    assert features.embed(rows, backbone, tmp_path, threads=1).cached == 4


def test_the_number_of_threads_changes_no_bit(shape_images: LabelledImages, backbone: Backbone, tmp_path: Path) -> None:
    one, three = (
        features.embed(shape_images.rows, backbone, tmp_path / str(threads), threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one.features, three.features)
    assert np.array_equal(one.simple, three.simple)


def test_the_simple_features_come_along_and_other_backbones_share_them(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path
) -> None:
    first = features.embed(shape_images.rows, backbone, tmp_path, threads=1)
    _, pixels, _ = features.decode(first.rows, backbone.rule)
    assert np.array_equal(first.simple, simple_features.simple_features(pixels))
    other = backbones.load("squeezenet1_1", "none", image_size=48, seed=1)
    assert np.array_equal(features.embed(shape_images.rows, other, tmp_path, threads=1).simple, first.simple)
    assert len(list((tmp_path / "embeddings").glob("simple-*"))) == 1


def test_the_same_network_is_compiled_once_for_lists_one_after_the_other(
    shape_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    compile_it = embedder.compiled
    monkeypatch.setattr(
        embedder, "compiled", lambda one, *given, **named: compiled.append(one.seed) or compile_it(one, *given, **named)
    )
    first, other = (backbones.load("squeezenet1_1", "none", image_size=48, seed=seed) for seed in (11, 12))
    halves = shape_images.rows[:30], shape_images.rows[30:]
    found = [features.embed(half, first, tmp_path, threads=1).features for half in halves]
    assert compiled == [11]
    assert not np.allclose(features.embed(halves[0], other, tmp_path, threads=1).features, found[0], atol=1e-3)
    again = features.embed(shape_images.rows, first, tmp_path / "anew", threads=1).features
    assert np.array_equal(again, np.concatenate(found))
    assert compiled == [11, 12, 11]


def test_simple_features_alone_are_made_up_for_without_the_network(
    shape_images: LabelledImages, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = features.embed(shape_images.rows, backbone, tmp_path, threads=1)
    (simple,) = (tmp_path / "embeddings").glob("simple-*")
    shutil.rmtree(simple)
    monkeypatch.setattr(features, "_compiled", None)
    again = features.embed(shape_images.rows, backbone, tmp_path, threads=1)
    assert again.cached == 0
    assert np.array_equal(first.simple, again.simple)
    assert np.array_equal(first.features, again.features)


def test_an_image_cut_short_is_reported_and_the_others_are_embedded(
    backbone: Backbone, tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    folder = write_shapes(tmp_path / "data", count=4, suffix="jpg")
    broken = folder / "disc" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    images = load(str(folder), validation=0.2, test=0.2, seed=0)
    assert not images.skipped  # its header is fine
    steps: list[Step] = []
    embedded = features.embed(images.rows, backbone, tmp_path / "cache", threads=1, progress=steps.append)
    ((digest, reason),) = embedded.failures.items()
    assert next(row.location for row in images.rows if row.digest == digest) == str(broken)
    assert "send the whole file" in reason
    assert len(embedded.rows) == len(embedded.features) == 11
    assert steps[-1] == Step("embedding images", 12, 12, "images")


def test_the_format_of_a_file_changes_next_to_nothing(backbone: Backbone, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None]), axis=2))
    for label in ("png", "jpg"):
        for number in range(3):
            (tmp_path / label).mkdir(exist_ok=True)
            turned = image.rotate(90 * number)
            turned.save(tmp_path / label / f"{number}.{label}", **({"quality": 97} if label == "jpg" else {}))
    images = load(str(tmp_path), validation=0.3, test=0.3, seed=0)
    embedded = features.embed(images.rows, backbone, tmp_path / "cache", threads=1)
    by_name = {Path(row.location).name: vector for row, vector in zip(embedded.rows, embedded.features, strict=True)}
    for number in range(3):
        png, jpg = by_name[f"{number}.png"], by_name[f"{number}.jpg"]
        assert float(png @ jpg / np.linalg.norm(png) / np.linalg.norm(jpg)) > 0.999
