"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

IMAGES: Final = "images"


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total` units of `stage` (such as "embedding images"); `total` 0 means not known. `unit` names what is
    counted, where how fast it goes is worth knowing."""

    stage: str
    done: int
    total: int
    unit: str = ""


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """A listener that says nothing."""
