"""All that is known of how accurate the live model is: by labels, by estimate, in the reference, over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from monitoring.accuracy import Accuracy, counted
from monitoring.backtest import Backtest, backtest, labelled_since, proven
from monitoring.error_stream import Rise, latest_rise
from monitoring.estimate import estimate
from monitoring.window import Scores, Window
from perennial import ledger
from perennial.settings import Settings

#: Of so many of a version's latest predictions the labelled ones are looked at as a stream.
_STREAM: Final = 20_000


@dataclass(frozen=True, slots=True)
class Accuracies:
    """`labels` is None where there are fewer than `monitor.min_labels`; `labelled` is how many there are.
    `reference` is the accuracy on the reference's held-out rows. `past_estimates` says how far estimates were off where
    labels came later. `errors_rose` says that the stream of labelled answers, over all windows, is under a rise of
    errors; it is no part of the verdict, but accuracy counts as lost by it too (`monitoring.policy`). The rest is
    `monitoring.estimate.Estimate`: `estimated` is None where `withheld` says why."""

    labels: Accuracy | None
    labelled: int
    estimated: Accuracy | None
    reference: Accuracy | None
    past_estimates: Backtest | None = None
    errors_rose: Rise | None = None
    calibrated: Accuracy | None = None
    unlike: float | None = None
    withheld: str | None = None
    unproven: Accuracy | None = None


def read_accuracies(
    engine: sa.Engine, settings: Settings, version: str, unseen: Scores, window: Window, unlike: float | None
) -> Accuracies:
    """Of a version's latest window; `unseen` are the reference rows that took no part in training, `unlike` is the
    share of the window that the domain classifier tells from the reference."""
    correct = window.answers.correct
    new = window.new_classes
    stream = ledger.predictions.labelled_answers(engine, version, _STREAM, new=new)
    past = labelled_since(engine, settings.name, version, settings.monitor.min_labels, new=new)
    found = estimate(unseen, window.scores, unlike, proven=proven(past))
    return Accuracies(
        labels=counted(correct) if len(correct) >= settings.monitor.min_labels else None,
        labelled=len(correct),
        estimated=found.estimated,
        reference=counted(unseen.answers.correct),
        past_estimates=backtest(past),
        errors_rose=latest_rise([each.answered != each.true_label for each in stream]),
        calibrated=found.calibrated,
        unlike=found.unlike,
        withheld=found.withheld,
        unproven=found.unproven,
    )
