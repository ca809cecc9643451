"""Did the model begin to err more often, and when? ADWIN on the labelled answers, one after the other.

A window's labels are compared with the reference's all at once (`detectors.labels`). A stream of them also says where a
change lies, and sees one that a window holds only the end of. Of five detectors on error streams ADWIN raised no false
alarm in 5,000 answers and was the quickest of those (Bifet and Gavalda, "Learning from time-changing data with adaptive
windowing", SDM 2007; river's implementation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

#: The chance that it sees a change in a stream that has none (the paper's delta).
DELTA: Final = 0.002
#: Of fewer answers nothing is said.
LEAST: Final = 100


@dataclass(frozen=True, slots=True)
class Rise:
    """`at` is the place in the stream from where on errors are more common, `since` how many answers ago that was;
    `before` and `after` are their shares."""

    at: int
    since: int
    before: float
    after: float


def latest_rise(wrong: Sequence[bool], *, delta: float = DELTA) -> Rise | None:
    """The rise that the end of the stream is still under; None where errors are as common as before, or fewer.

    Args:
        wrong: whether each labelled answer was wrong, oldest first.
    """
    if len(wrong) < LEAST:
        return None
    from river.drift import ADWIN  # a second to import, and most checks have no labels

    errors = np.asarray(wrong, dtype=np.float64)
    stream: Any = ADWIN(delta=delta)  # type: ignore[no-untyped-call]
    start = 0
    found: Rise | None = None
    for seen, error in enumerate(errors, start=1):
        stream.update(float(error))
        if not stream.drift_detected or seen - start < 2:
            continue
        at = start + _likeliest_change(errors[start:seen])
        before, after = float(errors[start:at].mean()), float(errors[at:seen].mean())
        if found is not None and after <= found.before:
            found = None  # it is over
        elif after > before and found is None:
            found = Rise(at, len(errors) - at, before, after)
        start = at
    return None if found is None else replace(found, after=float(errors[found.at :].mean()))


def _likeliest_change(errors: NDArray[np.float64]) -> int:
    """Where two shares of errors, one before and one after, make the answers likeliest; at least one on each side.

    ADWIN says that there was a change, and keeps a window that begins somewhere before it.
    """
    count = np.arange(1, len(errors))
    total = errors.cumsum()
    left, right = total[:-1], total[-1] - total[:-1]
    return 1 + int((_log_likelihood(left, count) + _log_likelihood(right, len(errors) - count)).argmax())


def _log_likelihood(errors: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of so many errors in so many answers, by their own share."""
    return np.asarray(xlogy(errors, errors / count) + xlogy(count - errors, 1.0 - errors / count))
