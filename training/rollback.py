"""Going back by itself: the live model beside the one it replaced, on labelled images that came in since.

The live model's answers are those that it gave. The model before answers the same stored images. Both are compared as
labels arrive, by a test that may be looked at after each (`training.sequential`); if the model before is better beyond
chance, it is live again. Where anything is amiss, the live model stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import sqlalchemy as sa

from perennial.bundle import Bundle, fetch_bundle
from perennial.errors import InvalidBundle, InvalidImage, Overtaken, StorageUnavailable
from perennial.graph import Graph
from perennial.images import ImageLimits, InputRule, Pixels, prepare
from perennial.ledger import EventKind, deployments, events, leases, models, watches
from perennial.ledger.connect import writing
from perennial.ledger.leases import Lease
from perennial.ledger.watches import Tally, Unseen, Watch, WatchedRow
from perennial.progress import IMAGES, Progress, Step, silent
from perennial.settings import Settings
from perennial.storage import Storage, sha256
from training.listing import Skipped
from training.sequential import evidence

Verdict = Literal["worse", "passed", "open"]
Outcome = Literal["rolled_back", "passed", "watching", "nothing_to_do"]

_BATCH: Final = 16  # images in memory at a time
#: Of each look at most so many times the images that are still needed: some may be gone or damaged.
_SPARE: Final = 10


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found. `live` is the version that is live after it, `numbers` the comparison (None: none was made);
    `skipped` images could not be read."""

    outcome: Outcome
    name: str
    live: str
    why: str
    numbers: dict[str, Any] | None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def exit_code(self) -> int:
        return 0 if self.outcome == "rolled_back" else 4

    def document(self) -> dict[str, Any]:
        """The look as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one look works with. `before` is the bundle of the model that was replaced."""

    engine: sa.Engine
    settings: Settings
    storage: Storage
    watch: Watch
    before: Bundle
    lease: Lease
    progress: Progress


def judge(found: Tally, *, labels: int, alpha: float) -> tuple[Verdict, float]:
    """Is the live model worse than the one before it, and how strong is the evidence?

    If it is not, it is called worse with a probability of at most `alpha`, however often this is asked on the way to
    `labels` images.
    """
    strength = evidence(found.only_before, found.only_live)
    if strength >= 1 / alpha:
        return "worse", strength
    return ("passed" if found.rows >= labels else "open"), strength


def roll_back_if_worse(engine: sa.Engine, settings: Settings, *, progress: Progress = silent) -> Look:
    """Compare the live model with the one it replaced, and go back to that one if it is better beyond chance.

    After `retrain.watch_labels` images without that, the watch is over, and an event says so. What both models said is
    kept: the next look costs only what is new.

    Raises:
        NoLiveModel: nothing is live.
        LeaseHeld: another process looks just now.
        InvalidBundle, StorageUnavailable: the model before cannot be had or does not verify.
        LeaseLost, LedgerUnavailable: see `perennial.errors`.
        Whatever is raised, the live model stays live.
    """
    name, wanted = settings.name, settings.retrain.watch_labels
    live = deployments.live(engine, name)
    if not wanted:
        return Look("nothing_to_do", name, live.version, "retrain.watch_labels is 0")
    with leases.held(engine, f"watch:{name}", settings.retrain.lease) as lease:
        watch = watches.open_watch(engine, name)
        if watch is None:
            why = (
                f"no watch is on over {live.version}: it replaced no other model, was gone back to, or has passed "
                f"its {wanted} labelled images"
            )
            return Look("nothing_to_do", name, live.version, why)
        storage = Storage(settings.blobs_url)
        before = _before(engine, settings, watch, storage)
        run = _Run(engine, settings, storage, watch, before, lease, progress)
        new, skipped = _answer(run)
        return _settle(run, new, skipped)


def _before(engine: sa.Engine, settings: Settings, watch: Watch, storage: Storage) -> Bundle:
    model = models.get(engine, settings.name, watch.before)
    advice = (
        f"{watch.version} stays live, as {watch.before}, which it replaced, cannot be had to compare it with: put its "
        "bundle back, or set retrain.watch_labels to 0"
    )
    try:
        return fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path)
    except InvalidBundle as error:
        raise InvalidBundle(f"{advice} ({error})") from error
    except StorageUnavailable as error:
        raise StorageUnavailable(f"{advice} ({error})") from error


def _answer(run: _Run) -> tuple[list[WatchedRow], tuple[Skipped, ...]]:
    """What the model before says to labelled images that it has not seen, as far as the watch still needs them, and
    those that could not be read."""
    settings, manifest = run.settings, run.before.manifest
    known = watches.answers(run.engine, run.watch)
    missing = max(0, settings.retrain.watch_labels - watches.tally(run.engine, run.watch).rows)
    found = watches.unseen(run.engine, run.watch, (1 + _SPARE) * settings.retrain.watch_labels)
    by_image: dict[str, Unseen] = {}
    for row in found:
        if row.image_digest not in known:
            by_image.setdefault(row.image_digest, row)
    waiting, total = iter(by_image.values()), min(missing, len(by_image))
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    skipped: list[Skipped] = []
    graph: Graph | None = None
    answered = 0
    with ThreadPoolExecutor(_BATCH) as pool:  # reading waits for the storage more than for the processor
        while batch := list(islice(waiting, min(_BATCH, missing - answered))):
            good: list[Unseen] = []
            pixels: list[Pixels] = []
            read = pool.map(lambda row: _pixels(row, manifest.input, run.storage, limits), batch)
            for row, one in zip(batch, read, strict=True):
                if isinstance(one, str):
                    skipped.append(Skipped(row.image_url, one))
                else:
                    good.append(row)
                    pixels.append(one)
            if good:
                graph = graph or Graph(run.before.graph, threads=settings.train.threads)
                probabilities = graph.run(np.stack(pixels)).probabilities
                for row, each in zip(good, probabilities, strict=True):
                    known[row.image_digest] = manifest.classes[int(each.argmax())], float(each.max())
                answered += len(good)
            run.progress(Step("asking the model before", answered, total, IMAGES))
    return [
        WatchedRow(row.prediction_id, row.image_digest, row.answer, row.confidence, *known[row.image_digest])
        for row in found
        if row.image_digest in known
    ], tuple(skipped)


def _pixels(row: Unseen, rule: InputRule, storage: Storage, limits: ImageLimits) -> Pixels | str:
    """A stored image as the network takes it, or why not."""
    try:
        data = storage.read(storage.key_of(row.image_url), most=limits.max_bytes)
        if len(data) <= limits.max_bytes and sha256(data) != row.image_digest:
            return "its bytes are not those that were predicted on"
        return prepare(data, rule, limits).pixels
    except (StorageUnavailable, InvalidImage) as error:
        return str(error)


def _settle(run: _Run, new: Sequence[WatchedRow], skipped: tuple[Skipped, ...]) -> Look:
    """Act on all that is known. What was answered is kept in the same transaction: a look that is killed never was."""
    engine, watch, retrain = run.engine, run.watch, run.settings.retrain
    name = run.settings.name
    found = watches.tally(engine, watch, new)
    verdict, strength = judge(found, labels=retrain.watch_labels, alpha=retrain.watch_alpha)
    numbers = found.document() | {
        "deployment": watch.deployment,
        "version": watch.version,
        "compared_with": watch.before,
        "of": retrain.watch_labels,
        "evidence": float(f"{strength:.4g}"),
        "needed": 1 / retrain.watch_alpha,
        "alpha": retrain.watch_alpha,
        "skipped": len(skipped),
        "without_image": watches.count_without_image(engine, watch),
    }
    why = _why(found, numbers, verdict, skipped)
    detail: dict[str, Any] = {
        "watch": numbers,
        "digests": {watch.version: models.get(engine, name, watch.version).digest, watch.before: run.before.digest},
    }

    def keep(connection: sa.Connection) -> None:
        run.lease.confirm(connection)
        watches.add(connection, watch.deployment, new)

    if verdict == "worse":
        try:
            deployments.deploy(
                engine,
                name,
                watch.before,
                reason=why,
                actor=watches.ACTOR,
                detail=detail,
                caused_by=watch.event,
                kind=EventKind.ROLLED_BACK,
                replaces=watch.version,
                guard=keep,
            )
        except Overtaken as error:
            return Look("nothing_to_do", name, deployments.live(engine, name).version, str(error), numbers, skipped)
        return Look("rolled_back", name, watch.before, why, numbers, skipped)
    if verdict == "passed":
        detail |= {"version": watch.version, "before": watch.before, "why": why, "actor": watches.ACTOR}
        events.add(engine, name, EventKind.WATCH_PASSED, detail, caused_by=watch.event, guard=keep)
        return Look("passed", name, watch.version, why, numbers, skipped)
    with writing(engine) as connection:
        keep(connection)
    return Look("watching", name, watch.version, why, numbers, skipped)


def _why(found: Tally, numbers: Mapping[str, Any], verdict: Verdict, skipped: Sequence[Skipped]) -> str:
    version, before, wanted = numbers["version"], numbers["compared_with"], numbers["of"]
    if not found.rows:
        told = f"no labelled image since {version} went live; {wanted} are compared with {before}, which it replaced"
    else:
        said = {"worse": "worse beyond chance", "passed": "not worse beyond chance", "open": "nothing is shown yet"}
        told = (
            f"on {found.rows} labelled images since it went live {version} has {found.live / found.rows:.1%} right, "
            f"{before}, which it replaced, {found.before / found.rows:.1%} ({found.only_live} and {found.only_before} "
            f"alone): {said[verdict]} (evidence {numbers['evidence']:.3g} of {numbers['needed']:.3g} needed)"
        )
        if verdict == "open":
            told += f"; {wanted - found.rows} more will be looked at"
    if found.labelled > found.rows:
        told += f"; {found.labelled - found.rows} more do not count, as they were labelled for being unsure"
    if skipped:
        told += f"; {len(skipped)} could not be compared, such as {skipped[0].location}: {skipped[0].reason}"
    if numbers["without_image"]:
        told += f"; the images of {numbers['without_image']} labelled predictions were not captured, or not kept"
    return told
