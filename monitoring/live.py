"""The model that is live, as whoever looks after it needs it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from perennial import ledger
from perennial.bundle import Bundle, fetch_bundle
from perennial.settings import Settings
from perennial.storage import Storage


@dataclass(frozen=True, slots=True)
class Live:
    """`digest` is the one that the bundle was verified by."""

    version: str
    digest: str
    bundle: Bundle


def live_model(engine: sa.Engine, settings: Settings) -> Live:
    """The live version of `settings.name`, its bundle fetched and verified.

    Raises:
        NoLiveModel: nothing has been deployed.
        InvalidBundle: the bundle does not verify.
        LedgerUnavailable, StorageUnavailable: try again later.
    """
    version = ledger.deployments.live(engine, settings.name).version
    model = ledger.models.get(engine, settings.name, version)
    bundle = fetch_bundle(model.bundle_url, model.digest, Storage(settings.blobs_url), settings.cache_path)
    return Live(version, model.digest, bundle)
