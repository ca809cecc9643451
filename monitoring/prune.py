"""Deletes old reports: each is megabytes, and there is one a check. The checks and their numbers stay."""

from __future__ import annotations

import sqlalchemy as sa

from perennial.ledger import checks
from perennial.storage import Storage


def prune_reports(engine: sa.Engine, storage: Storage, name: str, keep: int) -> int:
    """Delete the reports of a model's checks but the newest `keep`; returns how many.

    Raises:
        StorageUnavailable, LedgerUnavailable: some are left; the next call takes them.
    """
    old = checks.reports_beyond(engine, name, keep)
    for url in old.values():
        # A report of a storage that was used before is not ours to reach.
        if url.startswith(f"{storage.url}/"):
            storage.delete(storage.key_of(url))
    if old:
        checks.forget_reports(engine, list(old))
    return len(old)
