"""All that is known of how accurate the live model is: by labels, by estimate, in the reference, over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from monitoring.accuracy import Accuracy, counted, estimated
from monitoring.backtest import Backtest, backtest
from monitoring.error_stream import Rise, latest_rise
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
    errors; it is no part of the verdict."""

    labels: Accuracy | None
    labelled: int
    estimated: Accuracy | None
    reference: Accuracy | None
    past_estimates: Backtest | None = None
    errors_rose: Rise | None = None


def read_accuracies(engine: sa.Engine, settings: Settings, version: str, unseen: Scores, window: Window) -> Accuracies:
    """Of a version's latest window; `unseen` are the reference rows that took no part in training."""
    correct = window.answers.correct
    stream = ledger.predictions.labelled_answers(engine, version, _STREAM)
    return Accuracies(
        labels=counted(correct) if len(correct) >= settings.monitor.min_labels else None,
        labelled=len(correct),
        estimated=estimated(unseen, window.scores),
        reference=counted(unseen.answers.correct),
        past_estimates=backtest(engine, settings.name, version, settings.monitor.min_labels),
        errors_rose=latest_rise([each.answered != each.true_label for each in stream]),
    )
