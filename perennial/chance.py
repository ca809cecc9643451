"""How far apart chance alone puts two samples of a reference: kept in the bundle, scaled by each check."""

from __future__ import annotations

from math import sqrt

from pydantic import BaseModel, ConfigDict


class ChanceEffects(BaseModel):
    """Of each family, the effect that two samples of the same images stay under 9 times of 10, by the root of their
    sizes: `value * sqrt(1 / n + 1 / m)` for samples of n and m. It is that of the family's largest column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    properties: float
    output: float
    class_mix: float

    def of(self, family: str, reference_rows: int, window_rows: int) -> float:
        """The effect that chance stays under in samples of these sizes; 0 where one of them is empty."""
        if min(reference_rows, window_rows) < 1:
            return 0.0
        return float(getattr(self, family)) * sqrt(1 / reference_rows + 1 / window_rows)
