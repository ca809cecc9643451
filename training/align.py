"""Alignment to unlabelled images of where a model will be used (transductive transfer: labels at the source only).

Measured (`mobilenet_v2` of ImageNet; a probe on 600 photos of 7 classes, 200 to 300 unlabelled target images, judged on
others of the target; means of 5 draws), accuracy with plain features, with aligned ones, with half of BatchNorm's
statistics from the target, and with both:

    sketches      .17   .42   .26   .38
    noisy photos  .66   .80   .79   .86
    dark photos   .93   .95   .92   .94
    hazy photos   .91   .92   .95   .96

So aligned features never hurt here; BatchNorm's statistics pay where only the sensor differs. Neither the confidence
nor the mutual information of the answers told the two cases apart without labels. Aligned features do hurt where the
target's classes are not as common as the source's: with no other difference .99 fell to .86 on two classes of the
seven, and to .16 on one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor, nn

from perennial.errors import InvalidParameter
from perennial.images import Pixels
from training.backbones import Backbone, normalised
from training.probe import never_negative
from training.resident import blocks
from training.weights_file import digest_of

Floats = NDArray[np.float32]
Blocks = Iterator[tuple[int, Floats]]

#: Fewer images than this say too little about where they come from.
FEWEST: Final = 20
_BATCH: Final = 32
_SHRINKAGE: Final = 0.8
_FLOOR: Final = 1e-3  # of the mean variance, added to every feature's: one that is always zero must not be blown up


def adapt_batch_norm(backbone: Backbone, pixels: Pixels, *, share: float = 0.5, seed: int = 0) -> Backbone:
    """A copy whose BatchNorm normalises by statistics of these images: AdaBN (Li et al., 2016).

    Weights stay as they are, and `backbone` too. The statistics are averages over batches of about 32 images in random
    order. `share` of them is the new images' and the rest the old ones' (Schneider et al., NeurIPS 2020): all of it
    hurts where the two domains differ in more than their sensor.

    Args:
        pixels: uint8 [N, crop, crop, 3], a few hundred, of all classes.
        share: in 0..1.

    Raises:
        InvalidParameter: the network has no BatchNorm, or there are too few images.
    """
    if not 0.0 <= share <= 1.0:
        raise InvalidParameter(f"the share of new statistics is {share:g}; it must be from 0 to 1")
    if len(pixels) < FEWEST:
        raise InvalidParameter(f"{len(pixels)} images are too few to adapt to; give {FEWEST} or, better, some hundreds")
    network = copy.deepcopy(backbone.network)
    layers = list(batch_norms(network))
    if not layers:
        raise InvalidParameter(
            f"{backbone.name} has no BatchNorm to adapt; align its features instead (coral), which any network allows"
        )
    network.eval()
    before = [_statistics(layer) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average of all batches
        layer.train()
    order = np.random.default_rng(seed).permutation(len(pixels))  # a folder is in order of its classes
    with torch.no_grad():
        for rows in np.array_split(order, max(1, len(order) // _BATCH)):
            network(normalised(torch.from_numpy(np.ascontiguousarray(pixels[rows])), backbone))
    for layer, old, momentum in zip(layers, before, momenta, strict=True):
        for value, was in zip((layer.running_mean, layer.running_var), old, strict=True):
            value.lerp_(was, 1.0 - share)
        layer.momentum = momentum
    network.eval()
    return replace(backbone, network=network, weights_sha256=digest_of(network))


def batch_norms(network: nn.Module) -> Iterator[Any]:
    """The layers that normalise by running statistics."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield module


def coral(source: Floats, target: Floats, *, shrinkage: float = _SHRINKAGE) -> Floats:
    """The source features with the target's means and covariances: correlation alignment (Sun, Feng and Saenko, 2016).

    A classifier of the result is one of plain target features: nothing is added to what is served. Of all linear maps
    that align covariances this is the one that moves the features least (optimal transport between Gaussians; Flamary
    et al., 2019). The paper's own, to whiten and to recolour, also rotates them, which cost 5 to 10 points on sketches.
    Both covariances are shrunk towards their diagonals, by `shrinkage`: there are more features than images.

    It takes for granted that classes are about as common in the target as in the source.

    Args:
        source: [N, D], as a linear model is to see them (of features that are never negative, the square roots).
        target: [M, D], likewise.

    Returns:
        float32 [N, D]; may be negative.

    Raises:
        InvalidParameter: they have different widths, or there are too few rows.
    """
    aligned = np.empty(source.shape, np.float32)
    for start, block in _aligned(lambda: blocks(source), lambda: blocks(target), shrinkage):
        aligned[start : start + len(block)] = block
    return aligned


def aligned_to(features: Floats, at: NDArray[np.int64], target: Floats) -> tuple[Floats, bool]:
    """The features that a probe is to be fitted on so that it answers plain target ones.

    Args:
        features: [N, D] as the network gives them; of these the rows `at` are aligned, the rest set to NaN.
        target: [M, D] of unlabelled images, by the same network.

    Returns:
        float32 [N, D], and whether the probe that is fitted on them (`root` false) sees the square roots of plain
        features.

    Raises:
        InvalidParameter: there are too few rows.
    """
    root = never_negative(features) and never_negative(target)

    def seen(parts: Blocks) -> Blocks:
        return ((start, np.sqrt(block)) for start, block in parts) if root else parts

    found = np.full(features.shape, np.nan, np.float32)
    for start, block in _aligned(lambda: seen(blocks(features, at)), lambda: seen(blocks(target)), _SHRINKAGE):
        found[at[start : start + len(block)]] = block
    return found, root


def _aligned(source: Callable[[], Blocks], target: Callable[[], Blocks], shrinkage: float) -> Blocks:
    """The source's blocks, mapped onto the target's mean and covariance; both are gone through more than once."""
    own, other = _moments(source()), _moments(target())
    if len(own.mean) != len(other.mean):
        raise InvalidParameter(f"the source has {len(own.mean)} features and the target {len(other.mean)}")
    fewest = min(own.rows, other.rows)
    if fewest < FEWEST:
        raise InvalidParameter(f"{fewest} images are too few to align; give {FEWEST} or, better, some hundreds")
    # The map T is symmetric with T C T = C'. With C = L L^T: T = L^-T (L^T C' L)^1/2 L^-1.
    lower = np.linalg.cholesky(own.covariance(shrinkage))
    values, vectors = np.linalg.eigh(lower.T @ other.covariance(shrinkage) @ lower)
    half = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    left = solve_triangular(lower, half, lower=True, trans="T")
    mapping = solve_triangular(lower, left.T, lower=True, trans="T")
    for start, block in source():
        yield start, ((block - own.mean) @ mapping + other.mean).astype(np.float32)


@dataclass(frozen=True)
class _Moments:
    """`rows` rows' `mean` [D] and `products` [D, D], the sum of the outer products of their differences from `origin`
    [D]."""

    rows: int
    mean: NDArray[np.float64]
    products: NDArray[np.float64]
    origin: NDArray[np.float64]

    def covariance(self, shrinkage: float) -> NDArray[np.float64]:
        off = self.mean - self.origin
        found = (self.products - self.rows * np.outer(off, off)) / (self.rows - 1)
        variances = np.diag(found).copy()
        found *= 1.0 - shrinkage
        found[np.diag_indices_from(found)] = variances + _FLOOR * variances.mean() + 1e-12
        return np.asarray(found)


def _moments(parts: Blocks) -> _Moments:
    """In one go, so that no more than a block is in memory as float64. Differences are taken from the first block's
    mean: products of the numbers themselves would lose digits where the mean is far from zero."""
    rows, total, products, origin = 0, None, None, np.empty(0)
    for _, block in parts:
        values = block.astype(np.float64)
        if total is None or products is None:
            origin = values.mean(axis=0)
            total, products = np.zeros_like(origin), np.zeros((len(origin), len(origin)))
        values -= origin
        rows += len(values)
        total += values.sum(axis=0)
        products += values.T @ values
    if total is None or products is None:
        return _Moments(0, origin, np.empty((0, 0)), origin)
    return _Moments(rows, origin + total / rows, products, origin)


def _statistics(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()
