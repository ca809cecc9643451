"""Makes a challenger: what it learns from, how much each row counts, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from perennial.bundle import Bundle, Manifest
from perennial.images import ImageLimits
from perennial.progress import Progress, silent
from perennial.settings import Settings
from training import backbones
from training.backbones import Backbone
from training.candidates import RECENT_WEIGHTED, Choice, choose
from training.captures import Captures
from training.datasets import LabelledImages
from training.features import embed
from training.fit import FitRequest, Fitted, algebra_threads, fit, one_thread_a_batch
from training.material import OF_CHANGED_CLASS, Material, captured_rows, combine, original_data, pinned_rows
from training.meaning import ChangedClass
from training.near_copies import NearCopies, near_copies
from training.rungs import MAJORITY, SIMPLE
from training.strategy import AUTO
from training.together import Hardware


@dataclass(frozen=True, slots=True)
class Challenger:
    """What was trained, on what, and how its rows came to be weighed."""

    fitted: Fitted
    material: Material
    choice: Choice


def make_challenger(
    champion: Bundle,
    captures: Captures,
    settings: Settings,
    *,
    changed: Sequence[ChangedClass] = (),
    changed_before: Mapping[str, datetime] | None = None,
    limits: ImageLimits,
    progress: Progress = silent,
) -> Challenger:
    """Train on the champion's original data and the captures, from its pretrained checkpoint again.

    Raises:
        WeightsChanged: the checkpoint is not the one the champion was trained from.
        InvalidDataset: the original data is gone or cannot be used.
    """
    manifest = champion.manifest
    original = original_data(champion, settings, limits, progress)
    copies = near_copies(captured_rows(captures), original, limits, progress)
    material = combine(
        replace(original, thumbnails={}),  # not held through the training
        captures,
        pinned_rows(champion),
        seed=manifest.seed,
        holdout=settings.retrain.fresh_holdout,
        validation=settings.train.validation,
        changed=changed,
        changed_before=changed_before,
        copies=copies,
    )
    strategy = next_strategy(manifest)
    backbone = None
    if strategy != MAJORITY:
        backbone = backbones.load(
            manifest.backbone, manifest.pretrained.source, image_size=manifest.input.crop, seed=manifest.seed,
            expected_sha256=manifest.pretrained.sha256 or None,
        )  # fmt: skip
    images, choice = _chosen(backbone, material.images, strategy, copies, settings, limits, progress)
    gone = sum(count for reason, count in material.left_out.items() if reason.endswith(OF_CHANGED_CLASS))
    if gone:
        labels = ", ".join(sorted({*(change.label for change in changed), *(changed_before or {})}))
        told = f"{gone} older rows are left out in any case, as what they are called changed (concept drift: {labels})"
        choice = replace(choice, why=f"{choice.why}; {told}")
    fitted = fit(
        FitRequest(
            images=images,
            name=manifest.name,
            backbone=manifest.backbone,
            weights=manifest.pretrained.source,
            strategy=strategy,
            image_size=manifest.input.crop,
            seed=manifest.seed,
            threads=settings.retrain_threads,
            int8=settings.train.int8,
            budget=settings.train.budget,
            # A teacher's lesson is in the pinned weights already; only a probe can be aligned.
            target=settings.train.target if manifest.strategy == "linear_probe" else "",
            hardware=Hardware(settings.train.accelerator, settings.train.precision),
            parent=manifest.version,
            pretrained_sha256=manifest.pretrained.sha256 or None,
        ),
        bundles=settings.home_path / "models",
        cache=settings.cache_path,
        limits=limits,
        backbone=backbone,
        progress=progress,
    )
    return Challenger(fitted, material, choice)


def next_strategy(manifest: Manifest) -> str:
    """The champion's. Where `auto` found that no network was needed it is asked again: of today's images one may be."""
    by_auto = manifest.ladder is not None and manifest.ladder.signals is not None
    return AUTO if by_auto and manifest.strategy == SIMPLE else manifest.strategy


def _chosen(
    backbone: Backbone | None,
    images: LabelledImages,
    strategy: str,
    copies: NearCopies,
    settings: Settings,
    limits: ImageLimits,
    progress: Progress,
) -> tuple[LabelledImages, Choice]:
    """What to learn from, as a probe finds it on the features that the strategy learns on; `auto` may take either, and
    is tried on the pretrained network's."""
    if backbone is None:
        return images, Choice(RECENT_WEIGHTED, f"{strategy} learns on no features")
    threads = settings.retrain_threads
    with one_thread_a_batch():
        # The test rows too: with all of them cached, training need not compile the network once more.
        embedded = embed(
            images.rows, backbone, settings.cache_path, threads=threads, limits=limits, progress=progress
        )  # fmt: skip
    at = [place for place, row in enumerate(embedded.rows) if row.split != "test"]
    features = (embedded.simple if strategy == SIMPLE else embedded.features)[at]
    with algebra_threads(features.size, threads):
        return choose(
            images, [embedded.rows[place] for place in at], features, settings.retrain.candidates,
            margin=settings.retrain.margin, group=copies.group, progress=progress,
        )  # fmt: skip
