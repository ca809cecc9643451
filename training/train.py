"""A labelled folder -> a published model; the first of its name goes live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from perennial.errors import NoLiveModel
from perennial.images import ImageLimits
from perennial.ledger import deployments
from perennial.progress import Progress, silent
from perennial.settings import Settings
from perennial.storage import Storage
from training import datasets
from training.fit import FitRequest, Fitted, fit
from training.publish import publish


@dataclass(frozen=True, slots=True)
class Trained:
    """`live`: it went live, because no model of that name was."""

    fitted: Fitted
    live: bool


def train(engine: sa.Engine, settings: Settings, data: str, progress: Progress = silent) -> Trained:
    """Train on labelled data as `settings.train` says, and publish the model.

    Raises:
        InvalidDataset: the data cannot be used.
        WeightsUnavailable: the pretrained weights cannot be had.
        InvalidParameter: no such backbone, strategy or image size.
        StorageUnavailable, LedgerUnavailable: see `perennial.errors`.
    """
    chosen = settings.train
    storage = Storage(settings.blobs_url)  # first: better to hear now than after the work that it cannot be used
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    images = datasets.load(
        data, validation=chosen.validation, test=chosen.test, seed=chosen.seed, limits=limits, progress=progress
    )
    fitted = fit(
        FitRequest(
            images=images,
            name=settings.name,
            backbone=chosen.backbone,
            weights=_findable(chosen.weights),
            strategy=chosen.strategy,
            image_size=chosen.image_size,
            seed=chosen.seed,
            threads=chosen.threads,
            int8=chosen.int8,
            budget=chosen.budget,
        ),
        bundles=settings.home_path / "models",
        cache=settings.cache_path,
        limits=limits,
        progress=progress,
    )
    publish(fitted.bundle, engine, storage)
    version = fitted.bundle.manifest.version
    try:
        deployments.live(engine, settings.name)
    except NoLiveModel:
        deployments.deploy(engine, settings.name, version, reason="the first model of its name", actor="train")
        return Trained(fitted, live=True)
    return Trained(fitted, live=False)


def _findable(weights: str) -> str:
    # A retrain reads the same file again, perhaps from another folder.
    return weights if weights in ("default", "builtin", "none") else str(Path(weights).expanduser().absolute())
