"""A model that the inference process holds, and how it gets there."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from perennial.bundle import Bundle, fetch_bundle
from perennial.ledger import models
from perennial.settings import Settings
from perennial.storage import Storage
from service import precision
from service.inference import Inference, ModelHandle


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified, warmed-up model."""

    version: str
    bundle: Bundle
    model: ModelHandle
    classes: tuple[str, ...]
    precision: str


def load(engine: sa.Engine, storage: Storage, settings: Settings, version: str, inference: Inference) -> LoadedModel:
    """Fetch, verify, compile and warm up a version's bundle, in the precision that `serve` comes to.

    Raises:
        InvalidSettings: `serve.runtime` or `serve.precision` cannot be had, or not for this bundle.
        InvalidBundle: it does not verify, or its graph does not do what the manifest says.
        InferenceLost: the inference process died meanwhile, perhaps of it.
        StorageUnavailable, LedgerUnavailable, UnknownModel.
    """
    model = models.get(engine, settings.name, version)
    bundle = fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path)
    runtime, chosen = precision.choose(bundle.manifest, settings.serve, inference.runtime)
    handle = inference.load(bundle, runtime, chosen)
    return LoadedModel(version, bundle, handle, bundle.manifest.classes, chosen)
