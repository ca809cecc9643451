"""Are two samples of categories of one kind?"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

_POOL_BELOW: Final = 10  # classes with fewer rows on both sides together are tested as one: chi-square needs counts


def two_sample_chi_square(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The p-value of homogeneity of two samples of categories. 1 where there is one category only.

    Evidently's own `chisquare` takes the reference for exact and alarms too often for it; this one does not.
    """
    names, inverse = np.unique(np.concatenate([left, right]).astype(str), return_inverse=True)
    table = np.stack(
        [
            np.bincount(inverse[: len(left)], minlength=len(names)),
            np.bincount(inverse[len(left) :], minlength=len(names)),
        ]
    )
    rare = table.sum(axis=0) < _POOL_BELOW
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return 1.0
    return float(chi2_contingency(table, correction=False).pvalue)
