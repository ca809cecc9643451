"""What a challenger is trained on, and what it is judged on.

The original data keeps the splits that the champion had, so that no row the champion was held out from is trained
on now; labelled captures join it; rows whose label no longer means what it did are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

import pyarrow.parquet as pq

from perennial.bundle import DATASET, Bundle
from perennial.errors import InvalidBundle, InvalidDataset
from perennial.images import ImageLimits
from perennial.progress import Progress, silent
from perennial.settings import Settings
from training.captures import Capture, Captures, divide
from training.datasets import LabelledImages, Row, Split, load
from training.glance_cache import recall, remember
from training.meaning import ChangedClass
from training.near_copies import NearCopies
from training.splitting import HELD_OUT_FIRST

#: From this many fresh rows on, they alone are the new reference: what the challenger will see from now on.
REFERENCE_ROWS: Final = 100
#: A fresh row counts for at most this many original ones, so that a few labels cannot drown the rest.
MOST_WEIGHT: Final = 10.0
#: How the reason ends why a row with an old meaning is left out.
OF_CHANGED_CLASS: Final = "of a class whose meaning changed"


@dataclass(frozen=True, slots=True)
class Pinned:
    """A row of a bundle's dataset.parquet."""

    label: str
    split: Split
    origin: Literal["original", "capture"]


@dataclass(frozen=True, slots=True)
class Material:
    """`images`: what the challenger is made from. `fresh` and `old`: the gate's two slices, held out from it; `old` is
    the original held-out rows, and the captures that earlier gates judged on.
    `left_out`: how many rows were not used, by reason."""

    images: LabelledImages
    fresh: tuple[Row, ...]
    old: tuple[Row, ...]
    left_out: Mapping[str, int]


def pinned_rows(bundle: Bundle) -> dict[str, Pinned]:
    """What a model was trained and held out on, by image digest.

    Raises:
        InvalidBundle: the bundle does not say.
    """
    path = bundle.path / DATASET
    if not path.is_file():
        raise InvalidBundle(f"{bundle.path} has no {DATASET}, so what it was trained on is not known; train it anew")
    table = pq.read_table(path, columns=["image_digest", "label", "split", "origin"])
    return {row["image_digest"]: Pinned(row["label"], row["split"], row["origin"]) for row in table.to_pylist()}


def trained_on(pinned: Mapping[str, Pinned]) -> frozenset[str]:
    """Digests that took part in training, calibration included."""
    return frozenset(digest for digest, row in pinned.items() if row.split != "test")


def original_data(
    champion: Bundle, settings: Settings, limits: ImageLimits, progress: Progress = silent
) -> LabelledImages:
    """The original training data read again; an image that the champion knows keeps the split it had there, and a new
    one goes where its near-duplicates are: of several splits to the one that is held out the most. With thumbnails.

    Raises:
        InvalidDataset: it is no longer where it was, or cannot be used.
    """
    manifest, pinned = champion.manifest, pinned_rows(champion)
    images = load(
        settings.retrain.data or manifest.dataset.location,
        validation=settings.train.validation,
        test=settings.train.test,
        seed=manifest.seed,
        limits=limits,
        progress=progress,
        keep_thumbnails=True,
        known=recall(settings.cache_path, pinned, limits),
    )
    remember(settings.cache_path, images)
    splits = {digest: row.split for digest, row in pinned.items()}
    of_group: dict[str, Split] = {}
    for digest, group in images.groups.items():
        if digest in splits:
            known = splits[digest]
            of_group[group] = min(known, of_group.get(group, known), key=HELD_OUT_FIRST.__getitem__)
    rows = []
    for row in images.rows:
        split = splits.get(row.digest) or of_group.get(images.groups.get(row.digest, ""), row.split)
        rows.append(replace(row, split=split, reference=split != "train"))
    return replace(images, rows=tuple(rows))


def combine(
    original: LabelledImages,
    captures: Captures,
    pinned: Mapping[str, Pinned],
    *,
    seed: int,
    holdout: float,
    validation: float,
    changed: Sequence[ChangedClass] = (),
    changed_before: Mapping[str, datetime] | None = None,
    copies: NearCopies = NearCopies(),  # noqa: B008 - frozen
) -> Material:
    """Original data and captures as one set of rows, each image in one role.

    Fresh captures together weigh as much as all the rest, at most `MOST_WEIGHT` each. On photos with 300 labelled
    sketches any ratio from .5 to 2 gave the same accuracy where the probe's regularisation was well chosen; equal
    weight was the most robust where it was not.

    Args:
        pinned: the champion's rows.
        holdout: share of the fresh captures that the gate judges on.
        validation: share of the other fresh captures that calibrate.
        changed: classes whose rows from before the fresh window are left out.
        changed_before: the same from earlier retrains, with the moment of the change: rows from before it are left
            out unless the champion knows them.
        copies: near-duplicates among the captures and of original images. None of a held-out image is trained on, none
            of an image that was trained on is judged on, and of those that are judged on each group counts once.

    Raises:
        InvalidDataset: fewer than two classes have anything left to train on.
    """
    gone = {change.label for change in changed}
    before = changed_before or {}
    left_out: Counter[str] = Counter()
    fresh_digests = {capture.digest for capture in captures.fresh}
    held_out = {row.digest for row in original.rows if row.split == "test"}
    # The slice that the champion was judged on stays held out: what it learnt from its captures is guarded by it.
    judged_before = {digest for digest, row in pinned.items() if row.origin == "capture" and row.split == "test"}

    older: list[Capture] = []
    for capture in captures.older:
        if capture.label in gone:
            left_out[f"older captures {OF_CHANGED_CLASS}"] += 1
        elif capture.digest in held_out:
            left_out["older captures that are held-out images of the original data"] += 1
        elif capture.digest in copies.of_held_out and capture.digest not in judged_before:
            left_out["older captures that are near-duplicates of held-out images"] += 1
        elif capture.label in before and capture.at < before[capture.label] and capture.digest not in pinned:
            left_out[f"older captures {OF_CHANGED_CLASS}"] += 1
        else:
            older.append(capture)

    # A capture's label is newer than the one the same image has in the original data.
    relabelled = fresh_digests | {capture.digest for capture in older}
    relabelled |= {digest for digest, row in pinned.items() if row.origin == "capture"}
    kept: list[Row] = []
    for row in original.rows:
        if row.digest in relabelled:
            left_out["original images that were captured and labelled again"] += 1
        elif row.label in gone or (row.label in before and row.digest not in pinned):
            left_out[f"original images {OF_CHANGED_CLASS}"] += 1
        else:
            kept.append(row)

    learnt = trained_on(pinned) | copies.of_trained
    known = {copies.group(capture.digest) for capture in (*captures.fresh, *older) if capture.digest in learnt}
    learnt |= {capture.digest for capture in captures.fresh if copies.group(capture.digest) in known}
    sides = divide(
        captures.fresh,
        holdout=holdout,
        validation=validation,
        seed=seed,
        never_judged=learnt,
        never_trained=held_out | judged_before | copies.of_held_out,
        groups=copies.groups,
    )
    judged = {copies.group(digest) for digest, side in sides.items() if side == "test"}
    judged |= {copies.group(digest) for digest in judged_before}
    trained = [one for one in older if one.digest in judged_before or copies.group(one.digest) not in judged]
    left_out["older captures that are near-duplicates of one that is judged on"] += len(older) - len(trained)
    older = trained
    twins = _all_but_one(sides, copies, held_out | judged_before, never=learnt)
    left_out["fresh captures that are near-duplicates of one that is judged on"] += len(twins)
    sides = {digest: side for digest, side in sides.items() if digest not in twins}
    base = sum(row.weight for row in kept if row.split == "train")
    base += sum(capture.digest not in judged_before for capture in older)
    training = sum(side == "train" for side in sides.values())
    weight = min(MOST_WEIGHT, max(1.0, base / training)) if training else 1.0
    own_reference = len(sides) >= REFERENCE_ROWS
    rows = [replace(row, reference=row.reference and not own_reference) for row in kept]
    rows += [
        _row(capture, "test" if capture.digest in judged_before else "train", 1.0, reference=False) for capture in older
    ]
    rows += [
        _row(capture, sides[capture.digest], weight, reference=True)
        for capture in captures.fresh
        if capture.digest in sides
    ]

    tests = [row for row in sorted(rows, key=lambda row: row.digest) if row.split == "test"]
    # A class that nothing is left of to learn from cannot be an answer. The gate still judges on its rows.
    classes = {row.label for row in rows if row.split == "train"}
    for row in rows:
        if row.label not in classes:
            left_out[f"images of {row.label!r}, of which none is left to train on"] += 1
    if len(classes) < 2:
        raise InvalidDataset(
            f"only {len(classes)} class has images left to train on; a classifier needs two: label more captures"
        )
    usable = sorted((row for row in rows if row.label in classes), key=lambda row: row.digest)
    return Material(
        images=replace(original, classes=tuple(sorted(classes)), rows=tuple(usable)),
        fresh=tuple(row for row in tests if row.digest in fresh_digests),
        old=tuple(row for row in tests if row.digest not in fresh_digests),
        left_out={why: count for why, count in left_out.items() if count},
    )


def _all_but_one(
    sides: Mapping[str, Split], copies: NearCopies, kept: Collection[str], *, never: Collection[str]
) -> set[str]:
    """Of each group of near-duplicates that is judged on, all but one; those that were held out before are `kept`, and
    those that the champion was trained on are `never`."""
    seen = {copies.group(digest) for digest in kept}
    twins = set()
    for digest in sorted(digest for digest, side in sides.items() if side == "test" and digest not in kept):
        group = copies.group(digest)
        if digest in never:
            twins.add(digest)
            continue
        if group in seen:
            twins.add(digest)
        seen.add(group)
    return twins


def captured_rows(captures: Captures) -> list[Row]:
    """Every capture as a row that can be read; on which side it will be is not known yet."""
    return [_row(capture, "train", 1.0, reference=False) for capture in (*captures.fresh, *captures.older)]


def _row(capture: Capture, split: Split, weight: float, *, reference: bool) -> Row:
    return Row(capture.url, capture.label, capture.digest, split, weight, "capture", reference, capture.header)
