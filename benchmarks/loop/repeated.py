"""Five changes one after the other: does a model that starts anew from the pretrained checkpoint do better than one
that starts from the last model's weights? Both learn from the same rows, in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.loop.arms import warmed
from benchmarks.loop.images import Domain
from benchmarks.loop.play import Judge, Network, first_model
from benchmarks.loop.site import NAME, Site
from benchmarks.loop.streams import CLASSES, PHOTO, SKETCH, Moment, Sizes, Stream, Traffic
from perennial.bundle import Bundle
from perennial.graph import GraphOutput
from perennial.ledger import deployments
from training import captures as labelled
from training.challenger import make_challenger
from training.evaluate import calibration
from training.publish import publish

#: What comes one after the other, from photos on.
DRIFTS: Final = (
    SKETCH,
    Domain("photo", "a soft lens", 6.0),
    Domain("photo", "the dark", 0.8),
    Domain("sketch", "a turned camera", 90.0),
    Domain("photo", "noise", 40.0),
)
_PLURALS: Final = {"photo": "photos", "sketch": "sketches"}
PROBE, ANEW, LAST = "pretrained, probe", "pretrained, partial", "last model, partial"
STARTS: Final = (PROBE, ANEW, LAST)


@dataclass(frozen=True)
class Repeated:
    """A model after a retrain on one window's labels of `drift` and all before it. On held-out images: `accuracy` and
    `calibration_error` of what comes in now, `before` the accuracy of the model it replaced; `photos` the accuracy on
    what came first, `earlier` the mean over all that came before."""

    seed: int
    start: str
    number: int
    drift: str
    before: float
    accuracy: float
    calibration_error: float
    photos: float
    earlier: float
    training_seconds: float


def play(
    data: Path, network: Network, sizes: Sizes, *, seed: int, folder: Path, say: Callable[[str], None]
) -> list[Repeated]:
    """Send one window of each change to three sites, and retrain each after it."""
    traffic = Traffic(data, sizes, seed)
    first = first_model(traffic, CLASSES, network, folder / "first", seed)
    sites = {start: Site(folder / str(at), folder / "first" / "cache", sizes, first) for at, start in enumerate(STARTS)}
    judge, found = Judge(traffic), []
    stream = Stream("repeated", tuple(Moment({domain: 1.0}) for domain in DRIFTS), tuple(range(len(DRIFTS))))
    for number, (moment, sent) in enumerate(traffic.windows(stream)):
        known: dict[tuple[str, str], GraphOutput] = {}
        for start, site in sites.items():
            site.serve(sent, known)
            before = judge.accuracy(site.live(), moment)
            spent = site.clock.seconds.get("training", 0.0)
            with site.clock.of("training"):
                bundle = _retrained(site, start)
            (domain,) = moment.mix
            found.append(
                Repeated(
                    seed=seed,
                    start=start,
                    number=number + 1,
                    drift=f"{_PLURALS[domain.kind]}, {domain.through}" if domain.through else _PLURALS[domain.kind],
                    before=before,
                    accuracy=judge.accuracy(bundle, moment),
                    calibration_error=_calibration_error(judge, bundle, domain),
                    photos=judge.accuracy(bundle, Moment({PHOTO: 1.0})),
                    earlier=mean(judge.accuracy(bundle, Moment({one: 1.0})) for one in (PHOTO, *DRIFTS[:number])),
                    training_seconds=site.clock.seconds["training"] - spent,
                )
            )
            say(f"repeated: {found[-1]}")
    for site in sites.values():
        site.close()
    return found


def _retrained(site: Site, start: str) -> Bundle:
    """Trained as Perennial does, and live without a gate, so that both go through the same five changes."""
    champion = site.live()
    found = labelled.find(
        site.engine, NAME, site.version, window=site.settings.monitor.window, classes=champion.manifest.classes
    )
    found = labelled.verified(found, site.storage, site.limits)
    if start == LAST:
        champion = warmed(champion, site)
    elif start == ANEW:
        champion = replace(champion, manifest=champion.manifest.model_copy(update={"strategy": "partial"}))
    bundle = make_challenger(champion, found, site.settings, limits=site.limits).fitted.bundle
    publish(bundle, site.engine, site.storage)
    deployments.deploy(site.engine, NAME, bundle.manifest.version, reason="repeated", actor="benchmark")
    return site.live()


def _calibration_error(judge: Judge, bundle: Bundle, domain: Domain) -> float:
    probabilities, labels = judge.said(bundle, domain, CLASSES)
    index = {name: at for at, name in enumerate(bundle.manifest.classes)}
    scores: NDArray[np.float32] = probabilities
    return float(calibration(scores, [index[label] for label in labels])["ece"].value)


def summary(rows: Sequence[Repeated]) -> list[str]:
    """Lines: each start's means over the changes, and over the seeds."""
    lines = ["five changes in a row:"] if rows else []
    for start in dict.fromkeys(row.start for row in rows):
        mine = [row for row in rows if row.start == start]
        last = [row for row in mine if row.number == len(DRIFTS)]
        lines.append(
            f"  {start:20} accuracy {mean(row.accuracy for row in mine):.3f}, on what came before "
            f"{mean(row.earlier for row in mine):.3f}, photos at the end {mean(row.photos for row in last):.3f}, "
            f"calibration error {mean(row.calibration_error for row in mine):.3f}, "
            f"{mean(row.training_seconds for row in mine):.0f} s a retrain"
        )
    return lines
