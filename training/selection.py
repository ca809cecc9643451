"""On which rows the rungs are compared: on all by cross-validation where there are few, else on the validation rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.datasets import Row
from training.probe import split_into_folds

Indexes = NDArray[np.int64]

#: Up to so many training and validation rows together, none is kept back: a sixth of them is too many to do without
#: and too few to judge by.
FEW: Final = 600
FOLDS: Final = 5
#: Up to so many, a network that was judged on the validation rows learns from them too in the end: a sixth more images
#: is worth a point there.
SOME: Final = 2000


@dataclass(frozen=True, slots=True)
class Selection:
    """`learnt` are the rows that a model may be fitted on, `judged` those that rungs are compared on. With `folds` [len
    (learnt)] a judged row is answered by a model of the other folds; without, the two are apart. `final` are the rows
    that a network which is kept learns from, if there is time. `says` is how they are compared in words."""

    learnt: Indexes
    judged: Indexes
    folds: Indexes | None
    says: str

    @property
    def final(self) -> Indexes:
        few = self.folds is None and len(self.learnt) + len(self.judged) <= SOME
        return np.sort(np.concatenate([self.learnt, self.judged])) if few else self.learnt

    def parts(self, most: int | None = None) -> Iterator[tuple[Indexes, Indexes]]:
        """(rows to fit on, rows to judge on), at most `most` of such pairs."""
        if self.folds is None:
            yield self.learnt, self.judged
            return
        numbers = np.unique(self.folds[self.folds >= 0])
        for number in numbers[:most]:
            yield self.learnt[self.folds != number], self.learnt[self.folds == number]


def select(rows: Sequence[Row], labels: Sequence[int], groups: Mapping[str, str], seed: int) -> Selection:
    """How to compare rungs on these rows, of which the test ones are left alone.

    Args:
        groups: digest -> group of near-duplicates, which stay in one fold.
    """
    train = np.array([at for at, row in enumerate(rows) if row.split == "train"], np.int64)
    validation = np.array([at for at, row in enumerate(rows) if row.split == "validation"], np.int64)
    if len(train) + len(validation) > FEW:
        return Selection(train, validation, None, f"{len(validation):,} validation images")
    learnt = np.sort(np.concatenate([train, validation]))
    folds = split_into_folds(
        [labels[at] for at in learnt], [groups.get(rows[at].digest, rows[at].digest) for at in learnt], FOLDS, seed
    )
    judged = learnt[folds >= 0]
    if len(np.unique(folds[folds >= 0])) < 2:  # one image a class: nothing to cross-validate with
        return Selection(train, validation, None, f"{len(validation):,} validation images")
    count = len(np.unique(folds[folds >= 0]))
    return Selection(learnt, judged, folds, f"{count}-fold cross-validation over {len(judged):,} images")


def evenly(at: Sequence[int] | Indexes, most: int) -> Indexes:
    """At most so many of them, evenly spread."""
    chosen = np.asarray(at, np.int64)
    return chosen if len(chosen) <= most else chosen[np.unique(np.linspace(0, len(chosen) - 1, most).astype(int))]
