"""One stream through every arm, window by window, all of them beside each other: each window's images are made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.loop.arms import ARMS, EVERY
from benchmarks.loop.images import Domain, write_originals
from benchmarks.loop.site import NAME, Site, pixels_of
from benchmarks.loop.streams import Moment, Sizes, Stream, Traffic
from perennial.bundle import Bundle
from perennial.graph import Graph, GraphOutput
from perennial.images import ImageLimits
from training import datasets
from training.fit import FitRequest, fit

#: A deployment is bad if it loses more than this on a held-out sample of what comes in at that moment.
BAD: Final = 0.01
_BATCH: Final = 32


@dataclass(frozen=True)
class Network:
    """What every model is made from."""

    backbone: str
    weights: str
    side: int


@dataclass(frozen=True)
class Window:
    """One arm's window: the share of its images that is answered rightly, what followed, and, of a deployment, the
    accuracy on the held-out sample of the model that was live and of the one that is (else both are empty)."""

    stream: str
    seed: int
    arm: str
    window: int
    accuracy: float
    verdict: str
    outcome: str
    before: float | None
    after: float | None

    @property
    def deployed(self) -> bool:
        return self.after is not None

    @property
    def bad(self) -> bool:
        return self.before is not None and self.after is not None and self.after < self.before - BAD


@dataclass(frozen=True)
class Played:
    """One arm's stream. `every` is 1, or that only one window in so many was retrained after, and `training_seconds`
    then those measured, times it."""

    stream: str
    seed: int
    arm: str
    windows: int
    mean_accuracy: float
    accuracy_since_change: float
    retrains: int
    deployments: int
    bad_deployments: int
    labels_given: int
    labels_used: int
    check_seconds: float
    training_seconds: float
    every: int

    @property
    def compute_seconds(self) -> float:
        return self.check_seconds + self.training_seconds


def play(
    stream: Stream,
    arms: Sequence[str],
    data: Path,
    network: Network,
    sizes: Sizes,
    *,
    seed: int,
    folder: Path,
    every: int,
    say: Callable[[str], None],
) -> tuple[list[Played], list[Window]]:
    """Send a stream to each of `arms`.

    Args:
        every: `every window` does so after one window in so many.
        folder: for the homes.
    """
    traffic = Traffic(data, sizes, seed)
    first = first_model(traffic, stream.moments[0].classes, network, folder / "first", seed)
    sites = {arm: Site(folder / str(at), folder / "first" / "cache", sizes, first) for at, arm in enumerate(arms)}
    judge = Judge(traffic)
    found: list[Window] = []
    for number, (moment, sent) in enumerate(traffic.windows(stream)):
        known: dict[tuple[str, str], GraphOutput] = {}
        for arm, site in sites.items():
            accuracy = site.serve(sent, known)
            before = site.bundle
            skipped = arm == EVERY and number % every != every - 1
            asked = None if skipped else ARMS[arm](site)
            after = site.live()
            changed = after.digest != before.digest
            found.append(
                Window(
                    stream.name, seed, arm, number, accuracy, asked.verdict if asked else "",
                    asked.outcome if asked else "", judge.accuracy(before, moment) if changed else None,
                    judge.accuracy(after, moment) if changed else None,
                )
            )  # fmt: skip
        if number % max(1, len(stream.moments) // 16) == 0:
            told = ", ".join(f"{one.arm} {one.accuracy:.2f}" for one in found[-len(sites) :])
            say(f"{stream.name}, window {number + 1} of {len(stream.moments)}: {told}")
    played = [_played(stream, seed, arm, site, found, sizes, every) for arm, site in sites.items()]
    for site in sites.values():
        site.close()
    return played, found


def first_model(traffic: Traffic, classes: Sequence[str], network: Network, folder: Path, seed: int) -> Bundle:
    """A linear probe on the original images of these classes."""
    listed = write_originals(traffic.pools["photo"], folder / "images", classes)
    images = datasets.load(str(listed), validation=0.15, test=0.15, seed=seed)
    request = FitRequest(
        images, NAME, network.backbone, network.weights, "linear_probe", network.side, seed=seed, threads=1
    )
    return fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle


class Judge:
    """How good a model really is at a moment, on held-out images that are never sent."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._said: dict[tuple[str, Domain, tuple[str, ...]], tuple[NDArray[np.float32], list[str]]] = {}

    def accuracy(self, bundle: Bundle, moment: Moment) -> float:
        """In the mix of domains of that moment, under its names of the classes."""
        found = 0.0
        for domain, share in moment.mix.items():
            if share:
                probabilities, labels = self.said(bundle, domain, moment.classes)
                answers = np.array(bundle.manifest.classes)[probabilities.argmax(axis=1)]
                found += share * float(np.mean(answers == np.array([moment.called(label) for label in labels])))
        return found

    def said(self, bundle: Bundle, domain: Domain, classes: tuple[str, ...]) -> tuple[NDArray[np.float32], list[str]]:
        """The probabilities [N, K] of the held-out images, and their labels."""
        key = (bundle.digest, domain, classes)
        if key not in self._said:
            images, labels = self._traffic.judged(domain, classes)
            pixels, graph = pixels_of(images, bundle), Graph(bundle.graph, threads=1)
            parts = [graph.run(pixels[at : at + _BATCH]).probabilities for at in range(0, len(pixels), _BATCH)]
            self._said[key] = (np.concatenate(parts), labels)
        return self._said[key]


def _played(
    stream: Stream, seed: int, arm: str, site: Site, found: Sequence[Window], sizes: Sizes, every: int
) -> Played:
    mine = [window for window in found if window.arm == arm]
    seconds: Mapping[str, float] = site.clock.seconds
    since = [window.accuracy for window in mine if stream.changes and window.window >= stream.changes[0]]
    skipped = every if arm == EVERY else 1
    return Played(
        stream=stream.name,
        seed=seed,
        arm=arm,
        windows=len(mine),
        mean_accuracy=float(np.mean([window.accuracy for window in mine])),
        accuracy_since_change=float(np.mean(since)) if since else float("nan"),
        retrains=site.retrains() * skipped,
        deployments=sum(window.deployed for window in mine),
        bad_deployments=sum(window.bad for window in mine),
        labels_given=len(mine) * sizes.told,
        labels_used=site.labels_used(),
        check_seconds=seconds.get("checks", 0.0),
        training_seconds=seconds.get("training", 0.0) * skipped,
        every=skipped,
    )
