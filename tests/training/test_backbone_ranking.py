from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from perennial.errors import InvalidParameter, WeightsUnavailable
from training import datasets
from training.backbone_ranking import adjusted_h_score, at_hand, h_score, rank
from training.datasets import LabelledImages


def features_of(
    rows: int, width: int, classes: int, *, apart: float = 0.3, decay: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normal clouds, a class each. `decay` makes the later features smaller, as the components of networks' are."""
    random = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    means = apart * random.normal(size=(classes, width))
    scale = np.arange(1.0, width + 1) ** -decay
    return (scale * (random.normal(size=(rows, width)) + means[labels])).astype(np.float32), labels


def by_the_paper(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Ibrahim et al.'s equation, with scikit-learn's shrunk covariance."""
    X = features.astype(np.float64)
    X = X - X.mean(axis=0)
    fitted = LedoitWolf(assume_centered=True).fit(X)
    means = np.stack([X[labels == label].mean(axis=0) for label in labels])
    between = means.T @ means / len(X)
    return float((1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between))


@pytest.mark.parametrize(("rows", "width", "classes"), [(300, 40, 5), (60, 200, 3), (50, 50, 2)])
def test_the_h_score_is_the_papers_with_more_features_than_images_or_fewer(rows: int, width: int, classes: int) -> None:
    features, labels = features_of(rows, width, classes)
    assert h_score(features, labels.tolist()) == pytest.approx(by_the_paper(features, labels), rel=1e-9)


def test_scale_place_and_rotation_change_no_score() -> None:
    features, labels = features_of(120, 30, 3)
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 30)))
    for score in (h_score, adjusted_h_score):
        plain = score(features, labels.tolist())
        for other in (features * 1e6, features * 1e-6, features + 5, features @ turned.astype(np.float32)):
            assert score(other, labels.tolist()) == pytest.approx(plain, rel=1e-3)


def test_shuffled_labels_score_nothing_once_adjusted_though_the_plain_score_is_large() -> None:
    features, labels = features_of(60, 150, 4, decay=0.5)
    random = np.random.default_rng(0)
    shuffled = [random.permutation(labels).tolist() for _ in range(30)]
    assert np.mean([h_score(features, each) for each in shuffled]) > 0.5
    assert abs(np.mean([adjusted_h_score(features, each) for each in shuffled])) < 0.02
    assert adjusted_h_score(features, labels.tolist()) > 0.2


def test_classes_further_apart_score_higher_up_to_one() -> None:
    scores = []
    for apart in (0.0, 0.2, 0.5, 3.0):
        features, labels = features_of(200, 60, 4, apart=apart)
        scores.append(adjusted_h_score(features, labels.tolist()))
    assert scores == sorted(scores)
    assert scores[0] < 0.1
    assert 0.95 < scores[-1] <= 1.0


def test_features_that_never_change_say_nothing() -> None:
    assert h_score(np.ones((10, 4), np.float32), [0, 1] * 5) == 0.0
    assert adjusted_h_score(np.ones((10, 4), np.float32), [0, 1] * 5) == 0.0
    half = np.concatenate([np.ones((10, 4)), np.random.default_rng(0).normal(size=(10, 4))], axis=1)
    assert np.isfinite(adjusted_h_score(half.astype(np.float32), [0, 1] * 5))


def test_one_class_and_labels_that_do_not_fit_are_refused() -> None:
    features, _ = features_of(10, 4, 2)
    with pytest.raises(InvalidParameter, match="two or more classes"):
        h_score(features, [1] * 10)
    with pytest.raises(InvalidParameter, match="9 labels do not fit"):
        h_score(features, [1] * 9)


# --- candidates ------------------------------------------------------------------------------------------


def test_weights_at_hand_are_the_builtin_ones_torchs_cache_and_files_named_by_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert at_hand() == (("mobilenet_v3_small", "builtin"),)
    cached = tmp_path / "torch" / "hub" / "checkpoints"
    cached.mkdir(parents=True)
    (cached / "resnet18-f37072fd.pth").touch()
    (cached / "resnet18-another.pth").touch()
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("vgg11_bn-1.pth", "resnet50.safetensors", "resnet5.pth", "notes.txt", "vit_b_16_mine.pth"):
        (mine / name).touch()
    assert set(at_hand(mine)) == {
        ("mobilenet_v3_small", "builtin"), ("resnet18", "default"), ("vgg11_bn", str(mine / "vgg11_bn-1.pth")),
        ("resnet50", str(mine / "resnet50.safetensors")), ("vit_b_16", str(mine / "vit_b_16_mine.pth")),
    }  # fmt: skip
    with pytest.raises(InvalidParameter, match="no folder of weights"):
        at_hand(tmp_path / "gone")


def test_a_candidate_that_does_not_load_comes_last_and_says_why(shape_images: LabelledImages, tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").write_bytes(b"nothing")
    broken = ("resnet18", str(tmp_path / "resnet18.pth"))
    rows = shape_images.of("train")
    first, last = rank(rows, shape_images.classes, [broken, ("mobilenet_v3_small", "builtin")], tmp_path, sample=12)
    assert (first.name, first.images, first.why) == ("mobilenet_v3_small", 12, "")
    assert first.score is not None
    assert (last.name, last.score) == ("resnet18", None)
    assert "not a file of plain weights" in last.why
    with pytest.raises(WeightsUnavailable, match="no candidate could be loaded"):
        rank(rows, shape_images.classes, [broken], tmp_path)
    with pytest.raises(InvalidParameter, match="no backbone has its weights at hand"):
        rank(rows, shape_images.classes, [], tmp_path)


def test_imagenet_weights_outrank_generated_roots_and_random_ones_on_real_photos(
    test_data: Path, tmp_path: Path
) -> None:
    images = datasets.load(str(test_data / "hymenoptera"), validation=0.2, test=0.2, seed=0)
    candidates = [*at_hand(test_data / "weights"), ("mobilenet_v3_small", "none"), ("squeezenet1_1", "none")]
    ranked = rank(images.of("train"), images.classes, candidates, tmp_path, sample=60, threads=1)
    assert [each.name for each in ranked[:2]] == ["mobilenet_v2", "squeezenet1_1"]
    assert all("imagenet" in each.weights for each in ranked[:2])
    scores = [each.score for each in ranked if each.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.5 > scores[2]


def test_few_good_features_outrank_many_weak_ones_which_the_plain_score_gets_wrong() -> None:
    def sets(width: int, apart: float, decay: float) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
        features, labels = features_of(320, width, 4, apart=apart, decay=decay)
        return features[:160], features[160:], labels[:160].tolist()

    def fresh_accuracy(train: NDArray[np.float32], test: NDArray[np.float32], labels: list[int]) -> float:
        probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
        return float(probe.score(test, labels))

    good, fresh_good, labels = sets(8, 1.0, 0.0)
    weak, fresh_weak, _ = sets(512, 0.1, 0.5)
    assert fresh_accuracy(good, fresh_good, labels) > fresh_accuracy(weak, fresh_weak, labels) + 0.2
    assert adjusted_h_score(good, labels) > adjusted_h_score(weak, labels) + 0.2
    assert h_score(good, labels) < h_score(weak, labels)
