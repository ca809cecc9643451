"""Which random views are fair: those that still show what the image is of.

A mirror image of a letter is another letter, and a patch whose colour is its class says nothing without colour. Whether
that is so is asked of the pretrained network's features before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from perennial.images import Pixels
from training.augment import DEFAULT, Augmentation, toned_views
from training.paired import mcnemar
from training.probe import Floats, Probe
from training.resident import taken
from training.selection import Indexes, evenly

_LOOKED_AT: Final = 100  # images, in a mirror and in other tones
_FITTED_ON: Final = 300
_ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Sight:
    """What the pretrained network makes of rows: `features` [rows, D] of all of them as they are, `changed` of some
    after a change of their pixels; `fit` makes a probe of features and the rows that they are of."""

    features: Floats
    changed: Callable[[Indexes, Callable[[Pixels], Pixels]], Floats]
    fit: Callable[[Floats, Indexes], Probe]


def fair_views(sight: Sight, labels: NDArray[np.int64], classes: int, fitted: Indexes, judged: Indexes) -> Augmentation:
    """The default views without those that are not fair.

    Mirror images are left out if a probe is measurably worse on them. Views in other tones are left out if a probe of
    such views is measurably worse on them than one of the images is on images (McNemar's exact test, 5 %).
    """
    few, some = evenly(fitted, _FITTED_ON), evenly(judged, _LOOKED_AT)
    as_they_are = taken(sight.features, some)

    def right(probe: Probe, features: Floats) -> NDArray[np.bool_]:
        return np.asarray(probe.logits(features).argmax(axis=1) == labels[some])

    probe = sight.fit(taken(sight.features, fitted), fitted)
    unfair = _worse(right(probe, sight.changed(some, _mirrored)), right(probe, as_they_are))
    fair = replace(DEFAULT, mirror=False) if unfair else DEFAULT
    if len(np.unique(labels[few])) < classes:
        return fair.plain_tones()
    plain = right(sight.fit(taken(sight.features, few), few), as_they_are)
    toned = right(sight.fit(sight.changed(few, _toned), few), sight.changed(some, _toned))
    return fair.plain_tones() if _worse(toned, plain) else fair


def _mirrored(pixels: Pixels) -> Pixels:
    return pixels[:, :, ::-1]


def _toned(pixels: Pixels) -> Pixels:
    return toned_views(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()


def _worse(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Is the first measurably less often right?"""
    return mcnemar(int((one & ~other).sum()), int((other & ~one).sum())) < _ALPHA
