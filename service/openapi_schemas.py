"""The shapes of what the calls take and answer, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from perennial import overview_document
from service import problems

Schema = dict[str, Any]

_PLACE: Final = "#/components/schemas/{model}"


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
                            "kind": {"$ref": "#/components/schemas/EventKind"},
                            "detail": anything,
                            "caused_by": {"type": ["integer", "null"]},
                        }
                    ),
                },
                "after": {"type": "integer"},
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
        "Problem": object_of(
            {
                "type": {"type": "string", "pattern": f"^{problems.URN}[a-z-]+$"},
                "title": text,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": text,
            }
        ),
        **_overview(),
    }


def _overview() -> dict[str, Schema]:
    """The overview's parts as they are defined, and what the service adds."""
    parts = overview_document.schemas(_PLACE)
    whole = parts["Overview"]
    needs_key = object_of({each: {"type": "boolean"} for each in ("read", "predict", "feedback", "admin")})
    properties = {**whole["properties"], "needs_key": needs_key}
    return {**parts, "Overview": {**whole, **object_of(properties)}}
