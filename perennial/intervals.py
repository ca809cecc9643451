"""Shares with their intervals."""

from __future__ import annotations

import math
from typing import Final

from perennial.bundle import Estimate

_Z: Final = 1.959963984540054  # the standard normal's 97.5 % point


def accuracy_interval(correct: int, total: int) -> Estimate:
    """A share with Wilson's 95 % interval (Wilson, 1927). Of nothing it is 0, anywhere in 0..1."""
    if total == 0:
        return Estimate(value=0.0, low=0.0, high=1.0)
    share = correct / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    # Rounding may put the end of the interval a hair inside a share of exactly 0 or 1.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Estimate(value=share, low=low, high=high)
