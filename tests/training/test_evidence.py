from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from training.evidence import Evidence
from training.rungs import LINEAR_PROBE, PARTIAL, Trial
from training.selection import Selection

ROWS = 400
LABELS = np.arange(ROWS) % 2


def trial(name: str, right: int, sure: float) -> Trial:
    """The first `right` rows right; what it says differs in how sure it is of each."""
    random = np.random.default_rng(0)
    towards = np.where(np.arange(ROWS) < right, 1.0, -0.2) * (sure + 0.2 * random.normal(size=ROWS))
    logits = np.zeros((ROWS, 2))
    logits[np.arange(ROWS), LABELS] = towards
    return Trial(name, np.arange(ROWS), logits, 1.0)


def other_rows_right(of: Trial) -> Trial:
    """Eleven rows right that were wrong, and ten the other way round."""
    logits = of.logits.copy()
    logits[:10] *= -1
    logits[-11:] *= -1
    return replace(of, logits=logits)


def evidence(*trials: Trial) -> Evidence:
    nothing = cast(Any, None)
    selection = Selection(np.arange(ROWS), np.arange(ROWS), None, "")
    found = Evidence(True, 1.0, 0, nothing, nothing, LABELS, 2, selection)
    found.trials.update({each.name: each for each in trials})
    return found


def test_a_rung_is_clearly_worse_by_more_than_a_standard_error_of_accuracy() -> None:
    assert evidence(trial(LINEAR_PROBE, 360, 3.0), trial(PARTIAL, 370, 3.0)).is_clearly_worse(LINEAR_PROBE, PARTIAL)
    assert not evidence(trial(LINEAR_PROBE, 370, 3.0), trial(PARTIAL, 370, 3.0)).is_clearly_worse(LINEAR_PROBE, PARTIAL)
    near = evidence(trial(LINEAR_PROBE, 370, 3.0), other_rows_right(trial(PARTIAL, 370, 3.0)))
    assert not near.is_clearly_worse(LINEAR_PROBE, PARTIAL)


def test_a_rung_is_behind_if_another_is_ahead_in_accuracy_and_in_log_loss() -> None:
    probe, other = trial(LINEAR_PROBE, 370, 3.0), trial(PARTIAL, 371, 3.0)
    assert evidence(probe, other).is_behind(LINEAR_PROBE, PARTIAL)
    assert not evidence(probe, other).is_behind(PARTIAL, LINEAR_PROBE)
    blurred = other.logits.copy()
    blurred[:370:3] *= 0.1  # one more is right, and of many it is less sure
    assert not evidence(probe, replace(other, logits=blurred)).is_behind(LINEAR_PROBE, PARTIAL)


def test_of_equal_accuracy_it_is_worse_if_its_answers_are_less_apart() -> None:
    flat = trial(LINEAR_PROBE, 370, 3.0)
    # Where it is right it is unsure, so that no temperature makes its answers as good.
    blurred = flat.logits.copy()
    blurred[::3] *= 0.1
    found = evidence(replace(flat, logits=blurred), trial(PARTIAL, 370, 3.0))
    assert found.is_clearly_worse(LINEAR_PROBE, PARTIAL)
    assert not found.is_clearly_worse(PARTIAL, LINEAR_PROBE)
    # A difference that calibration takes away is none.
    found = evidence(replace(flat, logits=flat.logits * 0.6), trial(PARTIAL, 370, 3.0))
    assert not found.is_clearly_worse(LINEAR_PROBE, PARTIAL)
