"""The system of record: predictions and how many there were, rejected images, labels, models, deployments, rollouts,
shadow answers, checks, events, leases, watches of what went live, and how far each webhook was told.

One module a table. Each function takes the engine that `open_ledger` returns and raises `LedgerUnavailable` when the
database does not answer.
"""

from perennial.ledger import (
    checks,
    deployments,
    events,
    labels,
    leases,
    models,
    new_classes,
    predictions,
    rejected_images,
    rollout_progress,
    rollouts,
    shadow_answers,
    traffic,
    watches,
    webhook_positions,
)
from perennial.ledger.connect import open_ledger
from perennial.ledger.events import EventKind

__all__ = [
    "EventKind",
    "checks",
    "deployments",
    "events",
    "labels",
    "leases",
    "models",
    "new_classes",
    "open_ledger",
    "predictions",
    "rejected_images",
    "rollout_progress",
    "rollouts",
    "shadow_answers",
    "traffic",
    "watches",
    "webhook_positions",
]
