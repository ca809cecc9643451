"""Every image of a training run decoded once, in one memory-mapped file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perennial.images import ImageLimits, InputRule, Pixels
from perennial.progress import IMAGES, Progress, Step, silent
from training.datasets import Row
from training.features import decode, in_batches


def mapped_pixels(
    rows: Sequence[Row], rule: InputRule, path: Path, *, threads: int, limits: ImageLimits, progress: Progress = silent
) -> Pixels:
    """uint8 [N, side, side, 3], the rows in order, side being what the rule resizes to: nothing but what makes it a
    square is cut off, so that random crops have something to choose from. The caller removes the file.

    Every row must be known to decode.
    """
    whole = InputRule(resize=rule.resize, crop=rule.resize)
    pixels = new_file(path, (len(rows), whole.crop, whole.crop, 3))
    done = 0
    for part in in_batches(rows, lambda batch: decode(batch, whole, limits)[1], threads=threads):
        pixels[done : done + len(part)] = part
        done += len(part)
        progress(Step("decoding images", min(done, len(rows)), len(rows), IMAGES))
    assert done == len(rows), "a row that was embedded can be decoded"
    return pixels


def new_file(path: Path, shape: tuple[int, ...]) -> Pixels:
    """A new NumPy file of uint8, mapped. Its room on the disk is taken at once: a disk that fills later would end the
    process by a signal (SIGBUS), wherever it writes then.

    Raises:
        OSError: there is not so much room.
    """
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels
