"""Claims about alignment to unlabelled target images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perennial.errors import InvalidParameter
from perennial.images import InputRule, Pixels
from perennial.storage import sha256
from training import backbones, embedder, features
from training.align import adapt_batch_norm, aligned_to, batch_norms, coral
from training.backbones import Backbone, normalised
from training.datasets import Row
from training.probe import Floats, fixed_probe
from training.unlabelled import load as load_unlabelled

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@pytest.fixture(scope="module")
def small() -> Backbone:
    return backbones.load("mobilenet_v3_small", "builtin")


def some_pixels(count: int, side: int = 64, seed: int = 0) -> Pixels:
    random = np.random.default_rng(seed)
    return (random.random((count, side, side, 3)) * random.integers(40, 200, (count, 1, 1, 1))).astype(np.uint8)


# --- BatchNorm -------------------------------------------------------------------------------------------


def test_the_statistics_become_those_of_the_images(small: Backbone) -> None:
    pixels = some_pixels(32)
    first: list[torch.Tensor] = []
    adapted = adapt_batch_norm(small, pixels, share=1.0)
    (layer, *_) = batch_norms(adapted.network)
    hook = layer.register_forward_pre_hook(lambda _, given: first.append(given[0]))
    with torch.no_grad():
        adapted.network(normalised(torch.from_numpy(pixels), small))
    hook.remove()
    assert torch.allclose(layer.running_mean, first[0].mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(layer.running_var, first[0].var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_a_share_lies_between_the_old_statistics_and_the_new(small: Backbone) -> None:
    pixels = some_pixels(32)
    old, half, new = (
        [layer.running_mean for layer in batch_norms(each.network)]
        for each in (small, adapt_batch_norm(small, pixels), adapt_batch_norm(small, pixels, share=1.0))
    )
    for before, between, after in zip(old, half, new, strict=True):
        assert torch.allclose(between, (before + after) / 2, atol=1e-5)


def test_only_a_copy_and_only_its_statistics_change(small: Backbone) -> None:
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    adapted = adapt_batch_norm(small, some_pixels(32))
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    for name, value in adapted.network.named_parameters():
        assert torch.equal(value, before[name]), name
    assert not adapted.network.training
    assert adapted.weights_sha256 != small.weights_sha256
    assert features.cache_key(adapted) != features.cache_key(small), "old embeddings would be taken for new ones"


def test_adapting_is_repeatable_and_the_folders_order_does_not_decide(small: Backbone) -> None:
    pixels = some_pixels(64)
    first, again, other = (adapt_batch_norm(small, given) for given in (pixels, pixels, pixels[::-1]))
    assert first.weights_sha256 == again.weights_sha256
    for one, two in zip(batch_norms(first.network), batch_norms(other.network), strict=True):
        assert torch.allclose(one.running_mean, two.running_mean, rtol=0.2, atol=0.2)


def test_a_network_without_batch_norm_is_refused_and_told_the_alternative() -> None:
    plain = backbones.load("squeezenet1_1", "none", image_size=64)
    with pytest.raises(InvalidParameter, match=r"squeezenet1_1 has no BatchNorm.*coral"):
        adapt_batch_norm(plain, some_pixels(32))


@pytest.mark.parametrize(("count", "share"), [(5, 0.5), (32, 1.5), (32, -0.1)])
def test_too_few_images_or_an_odd_share_are_refused(small: Backbone, count: int, share: float) -> None:
    with pytest.raises(InvalidParameter):
        adapt_batch_norm(small, some_pixels(count), share=share)


# --- features --------------------------------------------------------------------------------------------


def test_aligned_features_have_the_targets_means_and_covariances() -> None:
    random = np.random.default_rng(0)
    mixed, turned = (np.eye(6) + 0.3 * random.normal(size=(6, 6)) for _ in range(2))
    source = (random.normal(size=(400, 6)) @ mixed).astype(np.float32)
    target = (random.normal(size=(300, 6)) @ turned + 3).astype(np.float32)
    aligned = coral(source, target, shrinkage=0.0)
    assert aligned.shape == source.shape
    assert aligned.dtype == np.float32
    assert np.allclose(aligned.mean(0), target.mean(0), atol=1e-3)
    wanted = np.cov(target.T)
    assert np.linalg.norm(np.cov(aligned.T) - wanted) < 0.02 * np.linalg.norm(wanted)


def test_nothing_moves_where_there_is_no_shift() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)
    assert np.allclose(coral(rows, rows), rows, atol=1e-4)


def test_a_feature_that_is_always_zero_at_the_source_is_not_blown_up() -> None:
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 60, 10)).astype(np.float32)
    source[:, 3] = 0.0
    aligned = coral(source, target)
    assert np.isfinite(aligned).all()
    assert np.ptp(aligned[:, 3]) <= np.ptp(target[:, 3])


def test_square_roots_are_aligned_where_features_are_never_negative() -> None:
    random = np.random.default_rng(0)
    source, target = random.gamma(2.0, size=(2, 60, 10)).astype(np.float32)
    at = np.arange(5, 60)
    found, root = aligned_to(source, at, 3 * target)
    assert root
    assert np.isnan(found[:5]).all()
    assert np.allclose(found[at].mean(0), np.sqrt(3 * target).mean(0), atol=1e-4)
    found, root = aligned_to(source - 1, at, target)
    assert not root
    assert np.allclose(found[at].mean(0), target.mean(0), atol=1e-4)


def test_other_widths_or_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="3 features and the target 4"):
        coral(np.zeros((40, 3), np.float32), np.zeros((40, 4), np.float32))
    with pytest.raises(InvalidParameter, match="7 images are too few"):
        coral(np.zeros((40, 3), np.float32), np.zeros((7, 3), np.float32))


# --- on real images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(request: pytest.FixtureRequest) -> Backbone:
    folder: Path = request.getfixturevalue("test_data")
    return backbones.load("mobilenet_v2", str(folder / "weights" / "mobilenet_v2_imagenet.pth"))


def some_of(folder: Path, each: int, rule: InputRule, seed: int = 0) -> tuple[Pixels, list[int]]:
    """`each` images of every class, in random order."""
    random = np.random.default_rng(seed)
    rows: list[tuple[Row, int]] = []
    for at, label in enumerate(CLASSES):
        found = sorted((folder / label).iterdir())
        for place in random.permutation(len(found))[:each]:
            digest = sha256(found[place].read_bytes())
            rows.append((Row(str(found[place]), label, digest, "train"), at))
    rows = [rows[at] for at in random.permutation(len(rows))]
    return features.decode([row for row, _ in rows], rule)[1], [at for _, at in rows]


@pytest.fixture(scope="module")
def photos(test_data: Path, imagenet: Backbone) -> tuple[Pixels, list[int]]:
    return some_of(test_data / "pacs" / "photo", 40, imagenet.rule)


@pytest.fixture(scope="module")
def embed(imagenet: Backbone) -> embedder.Embedder:
    return embedder.OpenVinoEmbedder(imagenet, threads=1)


@pytest.fixture(autouse=True)
def one_thread_in_the_algebra() -> Iterator[None]:
    """As in `training.fit`: on busy cores, threads wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


def rooted(values: Floats) -> Floats:
    found: Floats = np.sqrt(np.maximum(values, 0.0)).astype(np.float32)
    return found


def accuracy(source: Floats, labels: list[int], target: Floats, truth: list[int]) -> float:
    probe = fixed_probe(source, labels, [1.0] * len(labels), len(CLASSES), 0.1, root=False)
    return float((probe.logits(target).argmax(axis=1) == truth).mean())


def test_aligned_photos_teach_sketches(
    test_data: Path, imagenet: Backbone, embed: embedder.Embedder, photos: tuple[Pixels, list[int]]
) -> None:
    """At full size .17 becomes .42 (600 photos, 300 unlabelled sketches, judged on 680 others)."""
    pixels, truth = some_of(test_data / "pacs" / "sketch", 40, imagenet.rule)
    source, target, labels = rooted(embed(photos[0])), rooted(embed(pixels)), photos[1]
    gains, kept = [], []
    for draw in range(3):
        order = np.random.default_rng(draw).permutation(len(target))
        seen, judged = order[:140], order[140:]
        right = [truth[at] for at in judged]
        plain = accuracy(source, labels, target[judged], right)
        gains.append(accuracy(coral(source, target[seen]), labels, target[judged], right) - plain)
        # The photos are not forgotten.
        some = np.random.default_rng(draw).permutation(len(labels))
        fitted, held_out = some[:210], some[210:]
        aligned = coral(source[fitted], target[seen])
        kept.append(accuracy(aligned, [labels[at] for at in fitted], source[held_out], [labels[at] for at in held_out]))
    assert min(gains) > 0.05
    assert np.mean(gains) > 0.12
    assert np.mean(kept) > 0.9


def test_batch_norms_statistics_make_up_for_a_noisy_sensor(
    imagenet: Backbone, embed: embedder.Embedder, photos: tuple[Pixels, list[int]]
) -> None:
    """At full size .66 becomes .79 (600 photos, 160 unlabelled noisy ones), and .86 with aligned features as well."""
    pixels, labels = photos
    noise = np.random.default_rng(0).normal(0, 50, (140, *pixels.shape[1:]))
    noisy = np.clip(pixels[140:] + noise, 0, 255).astype(np.uint8)
    seen, judged, right = noisy[:64], noisy[64:], labels[204:]
    source = rooted(embed(pixels[:140]))
    plain = accuracy(source, labels[:140], rooted(embed(judged)), right)
    adapted = adapt_batch_norm(imagenet, seen)
    after = accuracy(source, labels[:140], rooted(embedder.TorchEmbedder(adapted)(judged)), right)
    assert after > plain + 0.04


def test_a_folder_without_labels_is_read_as_one(test_data: Path, tmp_path: Path) -> None:
    source = sorted((test_data / "pacs" / "sketch" / "dog").iterdir())[:3]
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place, path in zip(("one.png", "a/two.png", "a/b/three.png"), source, strict=True):
        (tmp_path / place).write_bytes(path.read_bytes())
    (tmp_path / "a" / "copy.png").write_bytes(source[0].read_bytes())
    (tmp_path / "broken.jpg").write_bytes(source[1].read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no image", "utf-8")
    (tmp_path / ".hidden.png").write_bytes(source[2].read_bytes())
    images = load_unlabelled(tmp_path, threads=1)
    assert [row.label for row in images.rows] == [""] * 3
    assert sorted(Path(skip.location).name for skip in images.skipped) == ["broken.jpg", "notes.txt", "one.png"]
