"""Which pretrained backbone suits these images best, before anything is trained: `--backbone auto`.

Each candidate embeds a sample of the training images, and the regularised H-score of the embeddings ranks them: how
far the classes lie apart, in units of the spread of the features (Bao et al., 2019; with a shrunk covariance, which
few images need: Ibrahim, Ponomareva and Mazumder, 2021, arXiv 2110.06893), less what shuffled labels would score.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from perennial.errors import InvalidParameter, WeightsUnavailable
from perennial.images import ImageLimits
from perennial.progress import Progress, silent
from training import backbones, features
from training.datasets import DEFAULT_LIMITS, Row

#: Images that are embedded by each candidate.
SAMPLE: Final = 500
_SUFFIXES: Final = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate and its adjusted H-score: about 0 where it says nothing about the classes, at most 1. `score` is None
    where it could not be had, and `why` says why; `images` were embedded in `seconds`."""

    name: str
    weights: str
    score: float | None
    images: int
    seconds: float
    why: str = ""


def rank(
    rows: Sequence[Row],
    classes: Sequence[str],
    candidates: Sequence[tuple[str, str]],
    cache: Path,
    *,
    sample: int = SAMPLE,
    threads: int = 1,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> tuple[Ranked, ...]:
    """The candidates, best first; those that could not be tried come last and say why.

    Args:
        rows: training images, of which at most `sample` are embedded, the same share of each class.
        candidates: (name, weights), as `at_hand` gives them. One at a time is in memory. Each sees images of its own
            size, and embeds with `training.features.embed`: what it computes is not computed again by training.

    Raises:
        InvalidParameter: there is no candidate, or fewer than two classes.
        WeightsUnavailable: none of the candidates could be loaded.
        InvalidDataset: a file is gone, or was changed since it was listed.
    """
    if not candidates:
        raise InvalidParameter(
            "no backbone has its weights at hand; name one with --backbone, or give --weights a folder of state_dicts "
            "named by backbone, such as resnet50.pth"
        )
    chosen = _sample(rows, classes, sample)
    index = {label: at for at, label in enumerate(classes)}
    found = []
    for name, weights in candidates:
        began = time.perf_counter()
        try:
            backbone = backbones.load(name, weights)
        except (WeightsUnavailable, InvalidParameter) as error:
            found.append(Ranked(name, weights, None, 0, time.perf_counter() - began, str(error)))
            continue
        embedded = features.embed(chosen, backbone, cache, threads=threads, limits=limits, progress=progress)
        score = adjusted_h_score(embedded.features, [index[row.label] for row in embedded.rows])
        found.append(Ranked(name, weights, score, len(embedded.rows), time.perf_counter() - began))
    if all(each.score is None for each in found):
        raise WeightsUnavailable(f"no candidate could be loaded: {found[0].why}")
    return tuple(sorted(found, key=lambda each: -np.inf if each.score is None else each.score, reverse=True))


def h_score(features: NDArray[np.float32], labels: Sequence[int]) -> float:
    """The regularised H-score of features [N, D] for labels [N]: (1 - a) tr(S^-1 B), where B is the covariance of the
    class means, S the covariance of all features shrunk by a towards a multiple of the identity (Ledoit and Wolf,
    2004).

    From 0 to K - 1. It does not change when all features are multiplied by a number, moved or rotated.

    Raises:
        InvalidParameter: fewer than two classes, or features and labels do not match.
    """
    return _h_score(features, labels)[0]


def adjusted_h_score(features: NDArray[np.float32], labels: Sequence[int]) -> float:
    """How much of the H-score's way from what shuffled labels give (0, on average) to its most (1) the labels go.

    On a few hundred images the plain score is mostly the number of features: 250 sketches ranked random weights above
    ImageNet's. This does for it what adjusting does for R squared. Raises as `h_score` does.
    """
    score, by_chance, most = _h_score(features, labels)
    # Nothing is left to be explained where any labels would be explained in full.
    return (score - by_chance) / (most - by_chance) if most - by_chance > 1e-6 * most else 0.0


def _h_score(features: NDArray[np.float32], labels: Sequence[int]) -> tuple[float, float, float]:
    """The regularised H-score, its mean over all permutations of the labels, and K - 1."""
    if features.ndim != 2 or len(features) != len(labels):
        raise InvalidParameter(f"{len(labels)} labels do not fit features of shape {list(features.shape)}")
    _, code = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(code)
    most = len(counts) - 1.0
    if most < 1:
        raise InvalidParameter("the H-score needs images of two or more classes")
    X = features.astype(np.float64)
    X -= X.mean(axis=0)
    size = float(np.abs(X).max())
    if size == 0.0:  # all images look the same to it
        return 0.0, 0.0, most
    X /= size
    rows, width = X.shape
    average = np.zeros((len(counts), rows))  # average @ X: the class means
    average[code, np.arange(rows)] = 1.0 / counts[code]
    # Of the covariance [D, D] and the products of rows [N, N] the smaller one: the class means lie in the span of the
    # rows, and m' (b X'X + r I)^-1 m for m = X' a is a' G (b G + r I)^-1 a with G = X X'.
    wide = width > rows
    gram = X @ X.T if wide else X.T @ X
    shrinkage = _shrinkage(X, gram)
    kept = 1.0 - shrinkage
    spread = float(np.trace(gram)) / (rows * width)
    ridge = spread * max(shrinkage, 1e-10)  # collinear features must leave something to divide by
    left = average if wide else average @ X
    right = gram @ average.T if wide else left.T
    root = cholesky(kept * gram / rows + ridge * np.eye(len(gram)), lower=True)
    solved = cho_solve((root, True), right)
    score = kept * float((counts / rows * (left * solved.T).sum(axis=1)).sum())
    inverse = solve_triangular(root, np.eye(len(root)), lower=True)
    explained = len(root) - ridge * float((inverse**2).sum())  # how many dimensions the features span, softly counted
    return score, most * explained / (rows - 1), most


def at_hand(folder: Path | None = None) -> tuple[tuple[str, str], ...]:
    """Backbones whose weights need no download, as (name, weights): the built-in ones, published files in torch's hub
    folder, and files in `folder` named by backbone (`mobilenet_v2.pth`, `resnet50-0676ba61.pth`).

    Raises:
        InvalidParameter: `folder` is no folder.
    """
    from training.pretrain import BACKBONES

    names = backbones.names()
    found = [(name, "builtin") for name in BACKBONES]
    found += [(name, "default") for name in names if backbones.downloaded(name).is_file()]
    if folder is not None:
        if not folder.is_dir():
            raise InvalidParameter(f"{folder} is no folder of weights")
        for path in sorted(folder.iterdir()):
            name = _named(path, names)
            if name is not None:
                found.append((name, str(path.absolute())))
    return tuple(found)


def _named(path: Path, names: Sequence[str]) -> str | None:
    """The backbone that a file is named by; the longest name counts, so that vgg11_bn.pth is not vgg11's."""
    if path.suffix not in _SUFFIXES or not path.is_file():
        return None
    fits = [name for name in names if re.match(rf"{re.escape(name)}(?![a-z0-9])", path.stem)]
    return max(fits, key=len, default=None)


def _sample(rows: Sequence[Row], classes: Sequence[str], size: int) -> list[Row]:
    """At most `size` rows, of each class the same share and at least two, chosen by digest: the same ones each time."""
    kept: list[Row] = []
    for label in classes:
        of_class = [row for row in rows if row.label == label]
        of_class.sort(key=lambda row: hashlib.sha256(row.digest.encode()).digest())
        kept += of_class[: max(2, round(size * len(of_class) / max(size, len(rows))))]
    return kept


def _shrinkage(X: NDArray[np.float64], gram: NDArray[np.float64]) -> float:
    """Ledoit and Wolf's weight of the identity for centred X [N, D], 0..1, from either Gram matrix: scikit-learn's own
    (`ledoit_wolf_shrinkage`) makes two products of [D, N] and [N, D], most of this module's time."""
    rows, width = X.shape
    spread = float(np.trace(gram)) / rows
    square = float((gram**2).sum()) / rows**2
    noise = float(((X**2).sum(axis=1) ** 2).sum()) / rows
    distance = (square - spread**2 / width) / width
    variance = (noise - square) / (width * rows)
    return 0.0 if variance <= 0 or distance <= 0 else min(1.0, variance / distance)
