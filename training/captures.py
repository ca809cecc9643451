"""Labelled captures: images of the live traffic that people have put a label to.

*Fresh* ones were answered by the live model inside the window that called for a retrain (else they are its newest
labelled ones), or show a class that it does not know; *older* ones are all others. An image sent twice counts once,
with the last label it was given.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from perennial.errors import InvalidImage, StorageUnavailable
from perennial.images import ImageHeader, ImageLimits, read_header
from perennial.ledger import labels, models, new_classes, predictions
from perennial.ledger.new_classes import NewLabels
from perennial.ledger.predictions import LabelledPrediction
from perennial.progress import Progress, Step, silent
from perennial.storage import Storage, sha256
from training.datasets import Skipped, Split

#: Captures are the newest of at most so many windows and one, which bounds what a retrain reads. So are the fresh ones
#: since a drift began: a gate that waits for labels has to see them all once they have come.
OLDER_WINDOWS: Final = 4
_NOT_KEPT: Final = "its image is not kept: it was never captured (serve.capture), or retention removed it (retention)"
_READERS: Final = 8  # reading waits for the storage more than for the processor


@dataclass(frozen=True, slots=True)
class Capture:
    """One image of the traffic: where it lies, its last label, what the version that saw it last answered, and by which
    prediction."""

    digest: str
    url: str
    label: str
    predicted: str
    version: str
    at: datetime
    header: ImageHeader | None = None
    prediction_id: str = ""


@dataclass(frozen=True, slots=True)
class Captures:
    """Each digest occurs once in all of it. Ordered by digest. `skipped` are those left out, and why."""

    fresh: tuple[Capture, ...]
    older: tuple[Capture, ...]
    skipped: tuple[Skipped, ...]


def find(
    engine: sa.Engine,
    name: str,
    live: str,
    *,
    window: int,
    classes: Collection[str],
    since: datetime | None = None,
    new: NewLabels = new_classes.NONE,
) -> Captures:
    """The labelled captures in the ledger; their images are not read yet.

    Args:
        live: the live version.
        window: the most fresh captures to take, newest first, if there is no `since`; with one, and with the older
            ones, `1 + OLDER_WINDOWS` times as many.
        classes: those that the model knows; other labels are left out and listed.
        since: fresh captures are not older than this, unless they show a class that arrives.
        new: labels that are none of the classes; those that have enough images are classes too.
    """
    arriving = new.classes
    most = (1 + OLDER_WINDOWS) * window
    fresh = predictions.labelled_captures(engine, [live], since=since, limit=window if since is None else most)
    versions = [model.version for model in models.all_of(engine, name)]
    every = predictions.labelled_captures(engine, versions, limit=most)
    fresh_ids = {row.prediction.id for row in fresh}
    older = [row for row in every if row.prediction.id not in fresh_ids]

    last_label = _last_labels(engine, [*older, *fresh])
    newest: dict[str, LabelledPrediction] = {}
    for row in [*older, *fresh]:  # a digest among the fresh ones is fresh
        newest[row.prediction.image_digest] = row
    kept: dict[bool, list[Capture]] = {True: [], False: []}
    skipped: list[Skipped] = []
    for digest, row in sorted(newest.items()):
        label = last_label[digest]
        seen = row.prediction
        assert seen.image_url is not None  # `labelled_captures` gives no others
        if label not in classes and label not in arriving:
            skipped.append(Skipped(seen.image_url, new.missing(label)))
            continue
        header = ImageHeader(seen.format, seen.mode, seen.width, seen.height)
        # Who saw a class arrive slowly needs rows of it on each side, the gate's too.
        kept[seen.id in fresh_ids or label not in classes].append(
            Capture(digest, seen.image_url, label, seen.label, seen.model_version, seen.at, header, seen.id)
        )
    without = predictions.labelled_without_image(engine, live, since=since, limit=window)
    skipped += [Skipped(f"prediction {id_}", _NOT_KEPT) for id_, digest in without.items() if digest not in newest]
    return Captures(tuple(kept[True]), tuple(kept[False]), tuple(skipped))


def verified(captures: Captures, storage: Storage, limits: ImageLimits, progress: Progress = silent) -> Captures:
    """The same captures without those whose image cannot be read, is not one, or is not the one that was seen."""
    every = [*captures.fresh, *captures.older]
    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda capture: _fault(capture, storage, limits), every)
        for done, (capture, reason) in enumerate(zip(every, found, strict=True), start=1):
            if reason is not None:
                reasons[capture.digest] = reason
            progress(Step("reading captures", done, len(every)))
    return Captures(
        fresh=tuple(capture for capture in captures.fresh if capture.digest not in reasons),
        older=tuple(capture for capture in captures.older if capture.digest not in reasons),
        skipped=captures.skipped
        + tuple(Skipped(capture.url, reasons[capture.digest]) for capture in every if capture.digest in reasons),
    )


def arriving(captures: Captures, classes: Collection[str], at_least: int) -> tuple[Captures, dict[str, int]]:
    """The captures without those of new classes that have fewer than `at_least` of them at hand, and how many each
    new class has that stays."""
    counts = Counter(one.label for one in (*captures.fresh, *captures.older) if one.label not in classes)
    few = {label: count for label, count in counts.items() if count < at_least}
    gone = [one for one in (*captures.fresh, *captures.older) if one.label in few]
    left = Captures(
        tuple(one for one in captures.fresh if one.label not in few),
        tuple(one for one in captures.older if one.label not in few),
        captures.skipped
        + tuple(
            Skipped(
                one.url,
                f"its label {one.label!r} is no class yet: of the {at_least} images that it takes "
                f"(retrain.new_class_labels) {few[one.label]} can be read, label {at_least - few[one.label]} more so",
            )
            for one in gone
        ),
    )
    return left, {label: count for label, count in sorted(counts.items()) if label not in few}


def divide(
    fresh: Iterable[Capture],
    *,
    holdout: float,
    validation: float,
    seed: int,
    never_judged: Collection[str] = (),
    never_trained: Collection[str] = (),
    groups: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Give each fresh capture its side, by digest: `test` is the gate's slice.

    Fixed by (seed, digest) and stratified by label, so a second run gives the same.

    Args:
        holdout: share of the captures that the gate judges on.
        validation: share of the others that are kept for calibration.
        never_judged: digests that a judged model was trained on.
        never_trained: digests that must stay held out.
        groups: the group of each that has near-duplicates; a group is on one side.
    """
    by_group: dict[str, list[Capture]] = defaultdict(list)
    for capture in sorted(fresh, key=lambda capture: capture.digest):
        by_group[(groups or {}).get(capture.digest, capture.digest)].append(capture)
    sides: dict[str, Split] = {}
    free: list[Capture] = []
    rest: list[Capture] = []
    for members in by_group.values():
        digests = {capture.digest for capture in members}
        if digests & set(never_trained):
            sides.update(dict.fromkeys(digests, "test"))
        elif digests & set(never_judged):
            rest.append(members[0])
        else:
            free.append(members[0])
    judged = _stratified_share(free, holdout, seed)
    rest += [capture for capture in free if capture.digest not in judged]
    calibrating = _stratified_share(rest, validation, seed)
    for members in by_group.values():
        first = members[0].digest
        if first not in sides:
            side: Split = "test" if first in judged else "validation" if first in calibrating else "train"
            sides.update(dict.fromkeys((capture.digest for capture in members), side))
    return sides


def _stratified_share(captures: Sequence[Capture], share: float, seed: int) -> set[str]:
    """About `share` of each label, and as nearly as possible of all; never the only one of its label."""
    by_label: dict[str, list[Capture]] = defaultdict(list)
    for capture in captures:
        by_label[capture.label].append(capture)
    chosen: set[str] = set()
    seen = 0
    for label in sorted(by_label):
        of_label = sorted(
            by_label[label], key=lambda capture: hashlib.sha256(f"{seed}:{capture.digest}".encode()).digest()
        )
        seen += len(of_label)
        wanted = round(share * seen) - len(chosen)
        wanted = min(max(0, wanted), len(of_label) if share >= 1 else len(of_label) - 1)
        chosen |= {capture.digest for capture in of_label[:wanted]}
    return chosen


def _last_labels(engine: sa.Engine, rows: Sequence[LabelledPrediction]) -> dict[str, str]:
    """Each digest's last label, whichever of its predictions it was given to."""
    times = Counter(row.prediction.image_digest for row in rows)
    repeated = [row.prediction.id for row in rows if times[row.prediction.image_digest] > 1]
    order = labels.order(engine, repeated) if repeated else {}
    last: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: order.get(row.prediction.id, 0)):
        assert row.true_label is not None  # `labelled_captures` gives no others
        last[row.prediction.image_digest] = row.true_label
    return last


def _fault(capture: Capture, storage: Storage, limits: ImageLimits) -> str | None:
    try:
        data = storage.read(storage.key_of(capture.url))
    except StorageUnavailable as error:
        return str(error)
    if sha256(data) != capture.digest:
        return "its bytes are not those that were predicted on"
    try:
        read_header(data, limits)
    except InvalidImage as error:
        return str(error)
    return None
