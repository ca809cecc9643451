"""A labelled folder -> a published model; the first of its name goes live."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from perennial.errors import InvalidParameter, NoLiveModel
from perennial.images import ImageLimits
from perennial.ledger import deployments
from perennial.progress import Progress, silent
from perennial.settings import Settings
from perennial.settings_sections import TrainSettings
from perennial.storage import Storage
from training import backbone_ranking, datasets, full_disk, glance_cache, run_log
from training.datasets import LabelledImages
from training.fit import FitRequest, Fitted, fit, one_thread_a_batch
from training.publish import publish
from training.run_log import RunLog
from training.together import Hardware


@dataclass(frozen=True, slots=True)
class Trained:
    """`live`: it went live, because no model of that name was. `log` is the folder of the training log, if there is
    one."""

    fitted: Fitted
    live: bool
    log: Path | None = None


def train(engine: sa.Engine, settings: Settings, data: str, progress: Progress = silent) -> Trained:
    """Train on labelled data as `settings.train` says, and publish the model.

    Raises:
        InvalidDataset: the data cannot be used.
        WeightsUnavailable: the pretrained weights cannot be had.
        InvalidParameter: no such backbone, strategy or image size.
        InvalidSettings: what the log needs is not installed, or there are too few GPUs.
        DiskFull, StorageUnavailable, LedgerUnavailable: see `perennial.errors`.
    """
    logs = settings.home_path / "logs"
    with full_disk.explained(settings), run_log.opened(settings.train.log, logs, settings.name) as log:
        return _train(engine, settings, data, log, progress)


def _train(engine: sa.Engine, settings: Settings, data: str, log: RunLog, progress: Progress) -> Trained:
    chosen = settings.train
    storage = Storage(settings.blobs_url)  # first: better to hear now than after the work that it cannot be used
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    images = datasets.load(
        data, validation=chosen.validation, test=chosen.test, seed=chosen.seed, limits=limits, progress=progress,
        keep_thumbnails=True,
    )  # fmt: skip
    glance_cache.remember(settings.cache_path, images)  # for the first retrain
    images = replace(images, thumbnails={})
    backbone, weights = chosen.backbone, _findable(chosen.weights)
    if backbone == "auto":
        backbone, weights = _best_at_hand(images, chosen, settings.cache_path, limits, progress)
    fitted = fit(
        FitRequest(
            images=images,
            name=settings.name,
            backbone=backbone,
            weights=weights,
            strategy=chosen.strategy,
            image_size=chosen.image_size,
            seed=chosen.seed,
            threads=chosen.threads,
            int8=chosen.int8,
            budget=chosen.budget,
            target=chosen.target,
            teacher=chosen.teacher,
            hardware=Hardware(chosen.accelerator, chosen.precision),
        ),
        bundles=settings.home_path / "models",
        cache=settings.cache_path,
        limits=limits,
        progress=progress,
        log=log.write,
    )
    publish(fitted.bundle, engine, storage)
    version = fitted.bundle.manifest.version
    try:
        deployments.live(engine, settings.name)
    except NoLiveModel:
        deployments.deploy(engine, settings.name, version, reason="the first model of its name", actor="train")
        return Trained(fitted, live=True, log=log.folder)
    return Trained(fitted, live=False, log=log.folder)


def _best_at_hand(
    images: LabelledImages, chosen: TrainSettings, cache: Path, limits: ImageLimits, progress: Progress
) -> tuple[str, str]:
    """The backbone, and its weights, whose features tell these classes apart best, of those that need no download."""
    folder = Path(chosen.weights).expanduser()
    if chosen.weights == "none":
        raise InvalidParameter("--backbone auto ranks pretrained weights; with --weights none name a backbone")
    with one_thread_a_batch():
        best, *_ = backbone_ranking.rank(
            images.of("train"),
            images.classes,
            backbone_ranking.at_hand(folder if folder.is_dir() else None),
            cache,
            threads=chosen.threads or os.cpu_count() or 1,
            limits=limits,
            progress=progress,
        )
    return best.name, best.weights


def _findable(weights: str) -> str:
    # A retrain reads the same file again, perhaps from another folder.
    return weights if weights in ("default", "builtin", "none") else str(Path(weights).expanduser().absolute())
