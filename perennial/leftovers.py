"""What a crash leaves in storage: files that are half written, and reports whose check was never written."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from perennial.ledger import checks
from perennial.storage import Blob, Storage

_REPORTS: Final = "reports"


def find_leftovers(engine: sa.Engine, storage: Storage, before: datetime) -> list[Blob]:
    """Those last written before a moment; a check that runs now has written its report since.

    Raises:
        LedgerUnavailable, StorageUnavailable.
    """
    found = [blob for folder in ("captures", _REPORTS) for blob in storage.leftovers(folder, before)]
    for model in storage.folders(_REPORTS):
        found += storage.leftovers(model, before)
        named = checks.report_urls(engine, model.removeprefix(f"{_REPORTS}/"))
        if not any(url.startswith(f"{storage.url_of(model)}/") for url in named):
            continue  # it may be another ledger's, or the storage was moved: then nothing is known of these
        found += [
            blob
            for version in storage.folders(model)
            for blob in storage.listing(version)
            if blob.modified < before and storage.url_of(blob.key) not in named
        ]
    return found
