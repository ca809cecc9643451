"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total` units of `stage` (such as "embedding images"); `total` 0 means not known."""

    stage: str
    done: int
    total: int


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """A listener that says nothing."""
