"""What a check can say. Nothing heavy is imported here: the watcher and its metrics read it too."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """`docs/monitoring.md` tells someone on call what each means and what to do."""

    OK = "ok"
    INSUFFICIENT_DATA = "insufficient_data"
    COLLECTION_FAULT = "collection_fault"
    SENSOR_SHIFT = "sensor_shift"
    PRIOR_SHIFT = "prior_shift"
    DATA_DRIFT = "data_drift"
    CONCEPT_DRIFT = "concept_drift"


#: Verdicts that do not say that anything changed.
CALM: Final = frozenset({Verdict.OK, Verdict.INSUFFICIENT_DATA})


@dataclass(frozen=True, slots=True)
class Cause:
    """`columns` are what it was seen in, largest effect first."""

    cause: Verdict
    why: str
    columns: tuple[str, ...] = ()
