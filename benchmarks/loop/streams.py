"""Streams whose change points are known: what is sent in each window, and what would be a fair sample of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.loop.images import JUDGED, Domain, Pool, Sent, plainly, taken

SUDDEN, RAMP, SOFT, SWAPPED, ARRIVING, QUIET = (
    "sketches at once", "sketches as a ramp", "a lens going soft", "two classes swapped", "two classes arriving",
    "nothing at all",
)  # fmt: skip
PHOTO: Final = Domain()
SKETCH: Final = Domain("sketch")
CLASSES: Final = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
#: Those that no model knows at first, and those that change their names.
NEW: Final = ("guitar", "house")
PAIR: Final = ("elephant", "horse")
_SOFTEST: Final = 8.0  # the blur's radius, in pixels of 227


@dataclass(frozen=True)
class Sizes:
    """`windows` of a stream with change, `quiet` of the one without; `window` images in each, of which a share is
    `labelled`; `learnt` original images."""

    windows: int = 16
    quiet: int = 200
    window: int = 200
    labelled: float = 0.3
    learnt: int = 300

    @property
    def told(self) -> int:
        return round(self.labelled * self.window)


@dataclass(frozen=True)
class Moment:
    """What the traffic is made of in one window: shares of domains, classes that come, classes that changed names."""

    mix: Mapping[Domain, float]
    classes: tuple[str, ...] = CLASSES
    swapped: bool = False

    def called(self, label: str) -> str:
        """What an image of this class is called now."""
        return {PAIR[0]: PAIR[1], PAIR[1]: PAIR[0]}.get(label, label) if self.swapped else label


@dataclass(frozen=True)
class Stream:
    """`moments` one a window; `changes` the windows (from 0) at which something begins to change."""

    name: str
    moments: tuple[Moment, ...]
    changes: tuple[int, ...]


def stream(name: str, sizes: Sizes) -> Stream:
    """One of `STREAMS`."""
    return STREAMS[name](name, sizes)


def _sudden(name: str, sizes: Sizes) -> Stream:
    at = _third(sizes)
    mixes = [{SKETCH: 1.0} if number >= at else {PHOTO: 1.0} for number in range(sizes.windows)]
    return Stream(name, tuple(Moment(mix) for mix in mixes), (at,))


def _ramp(name: str, sizes: Sizes) -> Stream:
    at = _third(sizes) - 1
    over = max(1, sizes.windows - at - 2)
    shares = [min(1.0, max(0.0, (number - at + 1) / over)) for number in range(sizes.windows)]
    return Stream(name, tuple(Moment({PHOTO: 1 - share, SKETCH: share}) for share in shares), (at,))


def _soft(name: str, sizes: Sizes) -> Stream:
    at = _third(sizes) - 1
    over = max(1, sizes.windows // 2 - 1)
    softness = [min(1.0, max(0.0, (number - at + 1) / over)) * _SOFTEST for number in range(sizes.windows)]
    moments = (Moment({Domain("photo", "a soft lens", radius) if radius else PHOTO: 1.0}) for radius in softness)
    return Stream(name, tuple(moments), (at,))


def _swapped(name: str, sizes: Sizes) -> Stream:
    at = _third(sizes)
    return Stream(name, tuple(Moment({PHOTO: 1.0}, swapped=number >= at) for number in range(sizes.windows)), (at,))


def _arriving(name: str, sizes: Sizes) -> Stream:
    at, old = _third(sizes), tuple(label for label in CLASSES if label not in NEW)
    moments = (Moment({PHOTO: 1.0}, CLASSES if number >= at else old) for number in range(sizes.windows))
    return Stream(name, tuple(moments), (at,))


def _quiet(name: str, sizes: Sizes) -> Stream:
    return Stream(name, (Moment({PHOTO: 1.0}),) * sizes.quiet, ())


def _third(sizes: Sizes) -> int:
    return max(1, sizes.windows // 3)


STREAMS: Final[dict[str, Callable[[str, Sizes], Stream]]] = {
    SUDDEN: _sudden, RAMP: _ramp, SOFT: _soft, SWAPPED: _swapped, ARRIVING: _arriving, QUIET: _quiet,
}  # fmt: skip


class Traffic:
    """Makes the images of a stream, window by window, and the held-out sample of every moment."""

    def __init__(self, data: Path, sizes: Sizes, seed: int) -> None:
        self._sizes = sizes
        self._random = np.random.default_rng([seed, 11])
        share = min(1.0, sizes.window / 100)  # a smoke run judges by fewer
        self.pools = {
            kind: Pool(data, kind, CLASSES, sizes.learnt if kind == "photo" else 0, round(share * judged), seed)
            for kind, judged in JUDGED.items()
        }

    def windows(self, stream: Stream) -> Iterator[tuple[Moment, list[Sent]]]:
        """Each window's images, in a random order."""
        for moment in stream.moments:
            sent = []
            for number, (domain, share) in enumerate(moment.mix.items()):
                count, told = round(share * self._sizes.window), round(share * self._sizes.told)
                if number and number == len(moment.mix) - 1:  # what rounding left
                    count, told = self._sizes.window - len(sent), self._sizes.told - sum(one.labelled for one in sent)
                sent += self._drawn(domain, count, told, moment)
            yield moment, [sent[at] for at in self._random.permutation(len(sent))]

    def judged(self, domain: Domain, classes: tuple[str, ...]) -> tuple[list[bytes], list[str]]:
        """The held-out images of these classes as this domain shows them, and their labels."""
        pool = self.pools[domain.kind]
        at = [one for one in pool.judged if pool.labels[one] in classes]
        return [plainly(pool.paths[one], domain) for one in at], [pool.labels[one] for one in at]

    def _drawn(self, domain: Domain, count: int, told: int, moment: Moment) -> list[Sent]:
        pool, found = self.pools[domain.kind], []
        for at, labelled in pool.draw(count, told, moment.classes, self._random):
            label = moment.called(pool.labels[at])
            found.append(Sent(taken(pool.paths[at], pool.next_take(at), domain), label, labelled))
        return found
