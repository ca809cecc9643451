"""The shapes of what the calls take and answer, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from perennial.ledger.events import EventKind
from service import problems

Schema = dict[str, Any]

PREDICTION: Final = {
    "prediction_id": "01a1fb77-194f-7ebc-b7bf-c270089afb4e",
    "model": {"name": "flowers", "version": "20261121-001723-77540"},
    "label": "daisy",
    "confidence": 0.973112,
    "top": [{"label": "daisy", "probability": 0.973112}, {"label": "aster", "probability": 0.020418}],
}
PROBLEM: Final = {
    "type": f"{problems.URN}truncated-image",
    "title": "The image is truncated or corrupt",
    "status": 400,
    "detail": "the JPEG header is fine but the image data is not (image file is truncated); send the whole file",
}


def object_of(properties: dict[str, Schema], required: list[str] | None = None, *, closed: bool = False) -> Schema:
    wanted = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": wanted,
        **({"additionalProperties": False} if closed else {}),
    }


def schemas() -> dict[str, Schema]:
    text = {"type": "string"}
    time = {"type": "string", "format": "date-time"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    texts = {"type": "array", "items": text}
    anything = {"type": "object"}
    prediction = {"$ref": "#/components/schemas/Prediction"}
    problem = {"$ref": "#/components/schemas/Problem"}
    return {
        "Prediction": object_of(
            {
                "prediction_id": {"type": "string", "format": "uuid"},
                "model": object_of({"name": text, "version": text}),
                "label": text,
                "confidence": share,
                "top": {"type": "array", "minItems": 1, "items": object_of({"label": text, "probability": share})},
            }
        ),
        "Batch": object_of(
            {"results": {"type": "array", "items": {"oneOf": [prediction, object_of({"error": problem})]}}},
        ),
        "Label": object_of(
            {
                "prediction_id": {"type": "string", "minLength": 1},
                "label": {"type": "string", "minLength": 1},
                "source": {"type": ["string", "null"], "maxLength": 200, "pattern": r"^[^\u0000-\u001f\u007f]*$"},
            },
            required=["prediction_id", "label"],
            closed=True,
        ),
        "Accepted": object_of(
            {
                "accepted": {"type": "integer", "minimum": 0},
                "kept": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Labels that are no class of the model and are kept for when they become one.",
                },
                "unknown_predictions": texts,
                "unknown_labels": texts,
            }
        ),
        "Model": object_of(
            {
                "name": text,
                "version": text,
                "classes": texts,
                "backbone": text,
                "pretrained": object_of({"source": text, "sha256": text}),
                "strategy": text,
                "why": text,
                "metrics": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Estimate"}},
                "trained_at": time,
                "deployed_at": time,
                "reason": text,
                "actor": text,
                "bundle_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            }
        ),
        "Estimate": object_of({each: {"type": "number"} for each in ("value", "low", "high")}),
        "Status": object_of(
            {
                "model": object_of({"name": text, "version": {"type": ["string", "null"]}}),
                "verdict": {"type": ["string", "null"]},
                "message": text,
                "check": {"type": "integer"},
                "at": time,
                "model_version": text,
                "window": {},
            },
            required=["model", "verdict"],
        ),
        "Events": object_of(
            {
                "events": {
                    "type": "array",
                    "items": object_of(
                        {
                            "id": {"type": "integer"},
                            "at": time,
                            "kind": {"enum": [str(kind) for kind in EventKind]},
                            "detail": anything,
                            "caused_by": {"type": ["integer", "null"]},
                        }
                    ),
                },
                "after": {"type": "integer"},
            }
        ),
        "Overview": object_of(
            {
                "name": text,
                "at": time,
                "state": object_of(
                    {
                        "tone": {"enum": ["good", "caution", "bad"]},
                        "model_state": {
                            "enum": ["none", "unchecked", "healthy", "suspected", "drifting", "retraining"],
                        },
                        "since": {"type": ["string", "null"]},
                        "stale": {"type": "boolean"},
                        "sentence": text,
                    }
                ),
                "live": {"type": ["object", "null"]},
                "traffic": object_of(
                    {
                        "start": time,
                        "bucket_seconds": {"type": "integer", "minimum": 60},
                        "answered": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                        "rejected": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    }
                ),
                "checks": {"type": "array", "items": anything},
                "deployments": {"type": "array", "items": anything},
                "check": {"type": ["object", "null"]},
                "watch": {"type": ["object", "null"]},
                "rollout": {"type": ["object", "null"]},
                "new_labels": anything,
                "models": {"type": "array", "items": anything},
                "events": {"type": "array", "items": anything},
                "needs_key": {"type": "object", "additionalProperties": {"type": "boolean"}},
            }
        ),
        "LabelsQueue": object_of(
            {
                "version": text,
                "classes": texts,
                "images": {
                    "type": "array",
                    "items": object_of(
                        {
                            "prediction_id": text,
                            "image": text,
                            "predicted": text,
                            "confidence": share,
                            "at": time,
                            "chosen": {"enum": ["random", "informative"]},
                        }
                    ),
                },
            }
        ),
        "Deployment": object_of(
            {
                "name": text,
                "version": text,
                "reason": text,
                "actor": text,
                "deployed_at": time,
                "event_id": {"type": "integer"},
            }
        ),
        "Problem": {
            **object_of(
                {
                    "type": {"type": "string", "pattern": f"^{problems.URN}[a-z-]+$"},
                    "title": text,
                    "status": {"type": "integer", "minimum": 400, "maximum": 599},
                    "detail": text,
                }
            ),
            "example": PROBLEM,
        },
    }
