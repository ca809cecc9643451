"""A long history in a ledger: a million predictions of a day, hundreds of checks, dozens of models."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from perennial.bundle import Bundle
from perennial.ids import first_id
from perennial.ledger import EventKind, checks, events
from perennial.ledger.schema import models, predictions, traffic

_AT_ONCE: Final = 5000
_DAY: Final = timedelta(hours=24)
_CHECKS: Final = 288  # one every five minutes
_FAMILIES: Final = ("properties", "output", "class_mix", "embedding", "novelty", "embedding_within_classes")
_COLUMNS: Final = 24
_MODELS: Final = 60
_REFUSALS: Final = 40


def write(engine: sa.Engine, name: str, bundle: Bundle, rows: int) -> None:
    """Write the history of a model of which `bundle` is live."""
    version, classes = bundle.manifest.version, bundle.manifest.classes
    counted: dict[datetime, int] = {}
    for batch in _predictions(version, classes, rows, datetime.now(UTC)):
        with engine.begin() as connection:
            connection.execute(sa.insert(predictions), batch)
        for row in batch:
            minute = row["at"].replace(second=0, microsecond=0)
            counted[minute] = counted.get(minute, 0) + 1
    with engine.begin() as connection:
        counts = [{"at": at, "model_version": version, "answered": count} for at, count in counted.items()]
        connection.execute(sa.insert(traffic), counts)
        found = connection.execute(sa.select(models).where(models.c.version == version)).mappings().one()
        older = [{**found, "version": f"20200101-000000-{number:05x}"} for number in range(_MODELS)]
        connection.execute(sa.insert(models), older)
    for number in range(_CHECKS):
        window = {"rows": 1000, "start": None, "end": None}
        checks.record(
            engine, name=name, model_version=version, window=window, verdict="ok", detail=_check(number),
            report_url=None,
        )  # fmt: skip
    for number in range(_REFUSALS):
        gate = {"outcome": "refuse", "rules": [{"name": "better_on_fresh", "passed": False, "why": "chance " * 40}] * 8}
        detail = {"version": f"20200101-000000-{number:05x}", "champion": version, "why": "no better", "gate": gate}
        events.add(engine, name, EventKind.GATE_REFUSED, detail)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))  # PostgreSQL does so by itself after a while


def _predictions(version: str, classes: tuple[str, ...], rows: int, now: datetime) -> Iterator[list[dict[str, Any]]]:
    random = np.random.default_rng(0)
    shares, embedding = np.full(len(classes), 1 / len(classes), np.float32), np.zeros(32, np.float32)
    properties = np.zeros(7, np.float32)
    for start in range(0, rows, _AT_ONCE):
        batch = []
        for number in range(start, min(rows, start + _AT_ONCE)):
            at = now - _DAY * (1 - number / rows)
            row = {
                "id": first_id(at)[:24] + f"{number:012x}", "at": at, "model_version": version, "precision": "float32",
                "label": classes[number % len(classes)], "confidence": float(random.random()), "probabilities": shares,
                "embedding": embedding, "properties": properties, "width": 640, "height": 480, "format": "JPEG",
                "mode": "RGB", "bytes": 53_000, "image_digest": f"{number:064x}",
                "image_url": f"file:///captures/{number:x}.jpg" if number % 10 == 0 else None, "source": None,
                "latency_ms": 7.0,
            }  # fmt: skip
            batch.append(row)
        yield batch


def _check(number: int) -> dict[str, Any]:
    estimate = {"value": 0.95 + number % 5 / 100, "low": 0.9, "high": 0.999}
    columns = {
        f"column {column}": {"effect": 0.1, "p_value": 0.5, "shift": 0.1, "alarm": False} for column in range(_COLUMNS)
    }
    family = {"score": 0.1, "p_value": 0.5, "alarm": False, "floor": 0.1, "skipped": None, "columns": columns}
    return {
        "state": "healthy",
        "accuracy": {"labels": estimate, "estimated": estimate, "labelled": 412, "withheld": None},
        "scores": dict.fromkeys(_FAMILIES, 0.1),
        "families": dict.fromkeys(_FAMILIES, family),
        "causes": [],
        "examples": [],
        "retrain": {"due": False, "why": "accuracy is not lost"},
        "seconds": 5.0,
    }
