"""Answers as they look, for the OpenAPI document: one of each schema, of a model that tells flowers apart."""

from __future__ import annotations

from typing import Any, Final

from perennial.errors import TruncatedImage
from service.openapi_errors import EXAMPLES as PROBLEMS

_NAME, _VERSION, _BEFORE = "flowers", "20261121-001723-77540", "20261114-021502-10233"
_NEXT = "20261124-030112-91027"
_PREDICTED, _OTHER = "01a1fb77-194f-7ebc-b7bf-c270089afb4e", "01a1fb78-02c1-7d19-a0be-51f6e0b7d9a3"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_ACCURACY = {"value": 0.971, "low": 0.95, "high": 0.984}
_BEFORE_ACCURACY = {"value": 0.952, "low": 0.928, "high": 0.969}
_DAY = "2026-11-24"

PREDICTION: Final = {
    "prediction_id": _PREDICTED,
    "model": {"name": _NAME, "version": _VERSION},
    "label": "daisy",
    "confidence": 0.973112,
    "top": [{"label": "daisy", "probability": 0.973112}, {"label": "aster", "probability": 0.020418}],
}
LABEL: Final = {"prediction_id": _PREDICTED, "label": "aster", "source": "Ann"}

_CHECK: Final = {
    "id": 812,
    "at": f"{_DAY}T09:56:41+00:00",
    "version": _VERSION,
    "verdict": "sensor_shift",
}
_CAUSE: Final = {
    "cause": "sensor_shift",
    "why": "brightness fell by 1.3 standard deviations; the images of each class changed alike",
    "columns": ["brightness"],
}
_WINDOW: Final = {"rows": 1000, "start": f"{_DAY}T07:51:10+00:00", "end": f"{_DAY}T09:55:58+00:00"}
_RETRAIN: Final = {"due": False, "why": "accuracy 0.971 -> 0.963 on 412 labels: less than retrain.accuracy_drop"}

#: By schema.
ANSWERS: Final[dict[str, Any]] = {
    "Prediction": PREDICTION,
    "Batch": {"results": [PREDICTION, {"error": PROBLEMS[TruncatedImage]}]},
    "Accepted": {"accepted": 1, "kept": 0, "unknown_predictions": [], "unknown_labels": []},
    "Model": {
        "name": _NAME,
        "version": _VERSION,
        "classes": ["aster", "daisy", "tulip"],
        "backbone": "mobilenet_v3_small",
        "pretrained": {"source": "mobilenet_v3_small.safetensors", "sha256": _DIGEST},
        "strategy": "linear_probe",
        "why": "fine-tuning gained no accuracy beyond chance",
        "metrics": {"accuracy": _ACCURACY},
        "trained_at": "2026-11-21T00:17:23+00:00",
        "deployed_at": "2026-11-21T00:21:02+00:00",
        "reason": "passed the gate",
        "actor": "watch",
        "bundle_sha256": _DIGEST,
    },
    "Status": {
        "model": {"name": _NAME, "version": _VERSION},
        "verdict": "sensor_shift",
        "check": 812,
        "at": _CHECK["at"],
        "model_version": _VERSION,
        "window": _WINDOW,
        "causes": [_CAUSE],
        "retrain": _RETRAIN,
    },
    "Events": {
        "events": [
            {
                "id": 4711,
                "at": f"{_DAY}T09:56:41+00:00",
                "kind": "drift_opened",
                "detail": {"verdict": "sensor_shift", "model_version": _VERSION, "causes": [_CAUSE], "check": 812},
                "caused_by": None,
            }
        ],
        "after": 4711,
    },
    "Overview": {
        "name": _NAME,
        "at": f"{_DAY}T10:00:02+00:00",
        "state": {
            "tone": "bad",
            "model_state": "drifting",
            "since": f"{_DAY}T09:56:41+00:00",
            "stale": False,
            "sentence": "Drifting (sensor_shift) since 24 Nov, 09:56 UTC; accuracy 0.97 by 412 labels; "
            "last check 3 min ago.",
        },
        "live": {
            "version": _VERSION,
            "deployed_at": "2026-11-21T00:21:02+00:00",
            "reason": "passed the gate",
            "actor": "watch",
            "backbone": "mobilenet_v3_small",
            "classes": ["aster", "daisy", "tulip"],
            "accuracy_held_out": _ACCURACY,
        },
        "traffic": {
            "start": f"{_DAY}T09:54:00+00:00",
            "bucket_seconds": 120,
            "answered": [61, 58, 64, 12],
            "rejected": [0, 0, 1, 0],
        },
        "checks": [
            {
                **_CHECK,
                "rows": 1000,
                "labelled": 412,
                "accuracy_labels": _ACCURACY,
                "accuracy_estimated": None,
                "withheld": "the window is too unlike the reference",
                "scores": {"properties": 1.31, "embedding": 0.83},
            }
        ],
        "deployments": [
            {
                "id": 7,
                "at": f"{_DAY}T09:55:00+00:00",
                "version": _VERSION,
                "reason": "wrong on wet leaves",
                "actor": "key ann, http 10.0.0.7",
                "rolled_back": True,
            }
        ],
        "check": {
            **_CHECK,
            "state": "drifting",
            "causes": [_CAUSE],
            "window": _WINDOW,
            "families": {"properties": {"score": 1.31, "alarm": True, "floor": 0.25, "skipped": None}},
            "accuracy": {
                "labels": _ACCURACY,
                "labelled": 412,
                "estimated": None,
                "reference": _ACCURACY,
                "withheld": "the window is too unlike the reference",
            },
            "retrain": _RETRAIN,
            "report": True,
            "examples": [
                {
                    "prediction_id": _PREDICTED,
                    "why": "drifted",
                    "drift": 0.99,
                    "predicted": "daisy",
                    "confidence": 0.61,
                    "label": None,
                    "stands_out": ["brightness", -3.1],
                    "image": f"/v1/images/{_PREDICTED}",
                    "nearest": [
                        {
                            "digest": _DIGEST,
                            "label": "daisy",
                            "predicted": "daisy",
                            "image": f"/v1/references/{_VERSION}/{_DIGEST}",
                        }
                    ],
                }
            ],
        },
        "watch": {
            "compared_with": _BEFORE,
            "of": 200,
            "labelled": 96,
            "rows": 84,
            "live": _ACCURACY,
            "before": _BEFORE_ACCURACY,
            "only_live": 4,
            "only_before": 2,
        },
        "rollout": {
            "version": _NEXT,
            "champion": _VERSION,
            "stage": "10 % of the traffic",
            "number": 2,
            "stages": 3,
            "share": 0.1,
            "since": f"{_DAY}T08:12:44+00:00",
            "answered": 131,
            "of": 200,
            "agreed": None,
            "faults": 0,
        },
        "new_labels": {"images": {"moss": 12}, "needed": 20, "classes": []},
        "models": [
            {
                "version": _VERSION,
                "created_at": "2026-11-21T00:17:23+00:00",
                "parent": _BEFORE,
                "live": True,
                "status": "live",
                "strategy": "linear_probe",
                "accuracy": _ACCURACY,
                "why": "fine-tuning gained no accuracy beyond chance",
            }
        ],
        "events": [
            {
                "id": 4711,
                "at": f"{_DAY}T09:56:41+00:00",
                "kind": "drift_opened",
                "what": f"sensor_shift on {_VERSION}",
                "why": _CAUSE["why"],
            }
        ],
        "needs_key": {"read": False, "predict": False, "feedback": False, "admin": True},
    },
    "LabelsQueue": {
        "version": _VERSION,
        "classes": ["aster", "daisy", "tulip"],
        "images": [
            {
                "prediction_id": _OTHER,
                "image": f"/v1/images/{_OTHER}",
                "predicted": "tulip",
                "confidence": 0.512,
                "at": f"{_DAY}T09:58:30+00:00",
                "chosen": "informative",
            }
        ],
    },
    "Deployment": {
        "name": _NAME,
        "version": _VERSION,
        "reason": "passed the field test",
        "actor": "key ann, http 10.0.0.7",
        "deployed_at": f"{_DAY}T10:01:15+00:00",
        "event_id": 4712,
    },
}
METRICS: Final = (
    "# HELP perennial_rejected_total Images and requests that were refused, by reason.\n"
    "# TYPE perennial_rejected_total counter\n"
    'perennial_rejected_total{reason="truncated-image"} 3.0\n'
)
