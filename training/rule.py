"""A condition that a challenger must meet. In a module of its own: to look at a rollout takes no network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of the gate or of a rollout, with its numbers in words."""

    name: str
    passed: bool
    why: str
