"""What a verdict and a state mean, and what to do next: one sentence each, for the terminal and for a check's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

VERDICTS: Final = {
    "ok": "What comes in is what the model knows.",
    "insufficient_data": "Too little came in to say anything.",
    "collection_fault": "The images do not come in as they should.",
    "sensor_shift": "The camera or the light changed.",
    "prior_shift": "The classes come in other shares than they used to.",
    "data_drift": "What comes in is not what the model knows.",
    "concept_drift": "The images are as they were, but the right answers changed.",
}
STATES: Final = {
    "healthy": "No window alarmed lately.",
    "suspected": "A window alarmed; others have to agree before drift is opened.",
    "drifting": "Drift is open until enough windows in a row are clean.",
}
_LABEL: Final = "perennial labels export FILE, or the page /ops"
_NEXT: Final = {
    "ok": "nothing",
    "insufficient_data": "wait for more traffic, or lower monitor.min_rows",
    "collection_fault": "look at the camera and at the client that sends; retraining would not help",
    "sensor_shift": "clean, refocus or relight the camera; retrain only if accuracy was lost",
    "prior_shift": f"ask whether the new mix is real; label some images ({_LABEL}) to see whether accuracy holds",
    "data_drift": f"look at the images in the report; label some ({_LABEL}): they say whether accuracy holds, and a "
    "retrain can learn them",
    "concept_drift": "check the labels with those who gave them; if they are right: perennial retrain",
}


def next_step(verdict: str, *, retrain_due: bool) -> str:
    """What whoever is on call does next."""
    return "perennial retrain --if-due" if retrain_due else _NEXT[verdict]


def compared_with(found: Mapping[str, Any]) -> str:
    """The rows that a window was compared with (`monitoring.check.ComparedWith`, as JSON)."""
    source = {"training": "the reference of the training", "same_hours": "the same hours of the weeks before"}
    return f"{source[found['reference']]}, {found['rows']} images"


def false_alarms(found: Mapping[str, float]) -> str:
    """How often chance alone alarms, and opens drift (`monitoring.persistence.FalseAlarms`, as JSON)."""
    hours = found["seconds"] / 3600
    pace = f", {f'{hours / 24:,.0f} days' if hours >= 48 else f'{hours:,.1f} hours'} at this pace" if hours > 0 else ""
    return (
        f"on traffic that never changes a window alarms with at most {found['rate']:.2%}, and drift is opened once in "
        f"{found['windows']:,.0f} windows or more{pace}"
    )
