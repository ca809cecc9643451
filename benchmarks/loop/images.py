"""The shared photos and sketches as traffic: what a model learns from, what is sent to it, and what it is judged by."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.drift.worlds import photos_on_disk
from perennial.storage import sha256

#: Images that are never sent: they say how good a model really is.
JUDGED: Final = {"photo": 250, "sketch": 200}
_EDGE: Final = 6  # pixels of 227 that a crop leaves out, on one side or the other
_QUALITIES: Final = (88, 89, 90, 91, 92)
#: As many pictures can be made of one image.
_TAKES: Final = (_EDGE + 1) ** 2 * len(_QUALITIES)
_MIDDLE: Final = (_EDGE // 2 * (_EDGE + 1) + _EDGE // 2) * len(_QUALITIES) + 2

Look = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Domain:
    """A kind of picture: photos or sketches, seen through something. `strength` is that something's, 0 for nothing."""

    kind: str = "photo"
    through: str = ""
    strength: float = 0.0


@dataclass(frozen=True)
class Sent:
    """An image as it arrives: its bytes, what it is called now, and whether somebody will label it."""

    data: bytes
    label: str
    labelled: bool

    @property
    def digest(self) -> str:
        return sha256(self.data)


class Pool:
    """One kind of image, dealt out into three parts that share none: learnt, judged and sent."""

    def __init__(self, data: Path, kind: str, classes: Sequence[str], learnt: int, judged: int, seed: int) -> None:
        paths, labels = photos_on_disk(data, kind)
        if not paths:
            raise SystemExit(f"there are no images at {data / 'pacs' / kind}: name the shared data with --test-data")
        kept = [at for at, label in enumerate(labels) if label in classes]
        order = np.random.default_rng([seed, len(paths)]).permutation(kept).tolist()
        self.kind = kind
        self.paths, self.labels = paths, labels
        self.judged, self.learnt, self.sent = order[:judged], order[judged : judged + learnt], order[judged + learnt :]
        self.unlabelled = list(self.sent)
        self._takes: dict[int, int] = {}

    def draw(
        self, count: int, labelled: int, classes: Sequence[str], random: np.random.Generator
    ) -> list[tuple[int, bool]]:
        """Which images of these classes are sent next. The labelled ones are never sent again, or a model would be
        asked what it was told; once all are labelled, all are sent anew."""
        free = [one for one in self.unlabelled if self.labels[one] in classes]
        if len(free) < max(labelled, 1):
            self.unlabelled = list(self.sent)
            free = [one for one in self.unlabelled if self.labels[one] in classes]
        at = random.permutation(free).tolist()
        told, rest = at[:labelled], at[labelled:] or at
        others = [rest[place % len(rest)] for place in range(count - labelled)]
        self.unlabelled = [one for one in self.unlabelled if one not in set(told)]
        return [(one, True) for one in told] + [(one, False) for one in others]

    def next_take(self, at: int) -> int:
        """Another picture of an image each time that it is sent."""
        self._takes[at] = self._takes.get(at, at) + 1
        return self._takes[at] % _TAKES


def taken(path: Path, take: int, domain: Domain) -> bytes:
    """An image as a JPEG of 221 pixels a side: cropped a little differently, at a little different quality, by
    `take`."""
    place, quality = divmod(take, len(_QUALITIES))
    down, right = divmod(place, _EDGE + 1)
    with Image.open(path) as file:
        image = look(file.convert("RGB"), domain)
    side = min(image.size) - _EDGE
    written = io.BytesIO()
    image.crop((right, down, right + side, down + side)).save(written, "JPEG", quality=_QUALITIES[quality])
    return written.getvalue()


def plainly(path: Path, domain: Domain) -> bytes:
    """The middle of an image, as `taken` makes it."""
    return taken(path, _MIDDLE, domain)


def look(image: Image.Image, domain: Domain) -> Image.Image:
    """The image through what the domain is seen through."""
    return _THROUGH[domain.through](domain.strength)(image) if domain.strength else image


def _soft(radius: float) -> Look:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


def _dark(strength: float) -> Look:
    return lambda image: ImageEnhance.Brightness(image).enhance(1 - strength)


def _grainy(sigma: float, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    noise = np.random.default_rng(int(pixels.sum())).normal(0.0, sigma, pixels.shape)
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def _turned(degrees: float) -> Look:
    return lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, expand=False, fillcolor=(128, 128, 128))


#: By strength: the blur's radius in pixels of 227, the share of light that is lost, the noise of 255, degrees.
_THROUGH: Final[dict[str, Callable[[float], Look]]] = {
    "a soft lens": _soft,
    "the dark": _dark,
    "noise": lambda sigma: partial(_grainy, sigma),
    "a turned camera": _turned,
}


def write_originals(pool: Pool, folder: Path, classes: Sequence[str]) -> Path:
    """What the first model learns from, made as the traffic is; a manifest of it."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "originals.csv"
    with listed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for at in (one for one in pool.learnt if pool.labels[one] in classes):
            path = folder / f"{pool.kind}-{at:04}.jpg"
            if not path.exists():
                path.write_bytes(plainly(pool.paths[at], Domain(pool.kind)))
            writer.writerow([path.name, pool.labels[at]])
    return listed
