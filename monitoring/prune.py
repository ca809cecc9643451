"""Deletes old reports: each is megabytes, there is one a check, and some show captured images. The checks and their
numbers stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from monitoring.verdict import CALM
from perennial.ledger import checks
from perennial.storage import Storage


def prune_reports(engine: sa.Engine, storage: Storage, name: str, keep: int, *, images_days: float = 0.0) -> int:
    """Delete the reports of a model's checks but the newest `keep`, and those that are older than captured images may
    be and show some, which only checks that found a change do (0: no bound); returns how many.

    Raises:
        StorageUnavailable, LedgerUnavailable: some are left; the next call takes them.
    """
    old = checks.reports_beyond(engine, name, keep)
    if images_days > 0:
        old |= checks.reports_before(engine, name, datetime.now(UTC) - timedelta(days=images_days), but=CALM)
    for url in old.values():
        # A report of a storage that was used before is not ours to reach.
        if url.startswith(f"{storage.url}/"):
            storage.delete(storage.key_of(url))
    if old:
        checks.forget_reports(engine, list(old))
    return len(old)
