"""The retrain decision as a table of cases: drift is not a reason, lost accuracy is."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.accuracy import Accuracy
from monitoring.error_stream import Rise
from monitoring.policy import Situation, decide
from monitoring.verdict import Verdict
from perennial.settings_sections import RetrainSettings

SETTINGS = RetrainSettings(min_labels=100, accuracy_drop=0.05, cooldown=3600.0)


def at(value: float, rows: int = 300) -> Accuracy:
    return Accuracy(value, value - 0.03, value + 0.03, rows)


CALM: dict[str, Any] = {
    "verdict": Verdict.OK,
    "reference": at(0.95),
    "labelled": None,
    "estimated": at(0.95),
    "withheld": None,
    "loss_p_value": 1.0,
    "alpha": 0.0015,
    "captures": 0,
    "seconds_since_retrain": None,
}
LOST = {"labelled": at(0.70), "loss_p_value": 1e-9, "captures": 300}

CASES: list[tuple[str, dict[str, Any], bool, str]] = [
    ("all is well", {}, False, "nothing says that accuracy was lost"),
    ("nothing came in", {"verdict": Verdict.INSUFFICIENT_DATA, "estimated": None}, False, "nothing says"),
    ("accuracy lost, by labels", {**LOST, "verdict": Verdict.DATA_DRIFT}, True, "0.950 -> 0.700 on 300 labels"),
    ("concept drift", {**LOST, "verdict": Verdict.CONCEPT_DRIFT}, True, "300 labelled images are at hand"),
    ("accuracy lost behind a dark lens", {**LOST, "verdict": Verdict.SENSOR_SHIFT}, True, "0.700"),
    ("accuracy lost, no input moved", LOST, True, "0.700"),
    ("a loss that could be chance", {**LOST, "loss_p_value": 0.01}, False, "could be chance"),
    (
        "the same loss where drift was found: hardly chance",
        {**LOST, "loss_p_value": 0.01, "verdict": Verdict.DATA_DRIFT},
        True,
        "0.950 -> 0.700 on 300 labels",
    ),
    (
        "drift, and a loss that could be chance all the same",
        {**LOST, "loss_p_value": 0.06, "verdict": Verdict.DATA_DRIFT},
        False,
        "could be chance",
    ),
    (
        "a loss that could be chance beside the reference, but not beside the answers before",
        {**LOST, "loss_p_value": 0.01, "errors_rose": Rise(300, 60, 0.04, 0.31)},
        True,
        "0.950 -> 0.700 on 300 labels, errors 4.0% -> 31.0% of the labelled answers; 300 labelled images",
    ),
    (
        "errors rose, but too few labelled images are at hand",
        {**LOST, "loss_p_value": 0.01, "errors_rose": Rise(300, 60, 0.04, 0.31), "captures": 40},
        False,
        "label 60 more",
    ),
    (
        "errors rose by too little to act on",
        {**LOST, "loss_p_value": 0.01, "errors_rose": Rise(300, 60, 0.27, 0.31)},
        False,
        "could be chance",
    ),
    (
        "errors rose some time ago, but no longer in this window",
        {**LOST, "labelled": at(0.95), "errors_rose": Rise(300, 60, 0.04, 0.31)},
        False,
        "less than retrain.accuracy_drop",
    ),
    (
        "a loss too small to act on",
        {**LOST, "labelled": at(0.91), "verdict": Verdict.SENSOR_SHIFT},
        False,
        "there is a sensor shift, but the model still copes",
    ),
    ("too few labelled images at hand", {**LOST, "captures": 40}, False, "label 60 more"),
    ("drift asks for nothing", {**LOST, "verdict": Verdict.DATA_DRIFT, "on_drift": False}, False, "on_drift is off"),
    ("just retrained", {**LOST, "seconds_since_retrain": 600.0}, False, "wait 3000 s more (perennial retrain"),
    ("just retrained, by a clock ahead of ours", {**LOST, "seconds_since_retrain": -2.0}, False, "wait 3600 s more"),
    ("retrained by a clock that was a day ahead", {**LOST, "seconds_since_retrain": -86_400.0}, True, "0.700"),
    ("retrained long ago", {**LOST, "seconds_since_retrain": 4000.0}, True, "0.700"),
    (
        "only the estimate fell",
        {"verdict": Verdict.DATA_DRIFT, "estimated": at(0.60)},
        False,
        "label 100 of the images",
    ),
    (
        "the estimate fell, but its interval reaches up",
        {"verdict": Verdict.DATA_DRIFT, "estimated": Accuracy(0.88, 0.80, 0.94, 300)},
        False,
        "the estimated accuracy holds",
    ),
    (
        "a dark lens that costs nothing",
        {"verdict": Verdict.SENSOR_SHIFT},
        False,
        "there is a sensor shift, but the estimated accuracy holds",
    ),
    (
        "drift too far away to estimate what it costs",
        {"verdict": Verdict.DATA_DRIFT, "estimated": None, "withheld": "97% of the window can be told"},
        False,
        "cannot be estimated (97% of the window can be told): label 100 of the images",
    ),
    (
        "no estimate of calm traffic",
        {"estimated": None, "withheld": "the window has 4 different images"},
        False,
        "nothing says that accuracy was lost",
    ),
    ("a broken collection", {**LOST, "verdict": Verdict.COLLECTION_FAULT}, False, "mend that first"),
    ("no reference accuracy", {**LOST, "reference": None}, False, "no held-out reference rows"),
]


@pytest.mark.parametrize(("changes", "due", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_retrain_is_due_when_accuracy_is_lost(changes: dict[str, Any], due: bool, why: str) -> None:
    on_drift = changes.get("on_drift", True)
    situation = Situation(**{key: value for key, value in {**CALM, **changes}.items() if key != "on_drift"})
    decision = decide(situation, SETTINGS.model_copy(update={"on_drift": on_drift}))
    assert decision.due is due
    assert why in decision.why
