"""One Evidently report a check: every test in it is chosen here, none is Evidently's default.

Evidently draws for people what `two_sample.py` computed and `detectors.py` decided. Importing this module costs seconds
and some 280 MB, so only `drawing.py` does, when there is something to show.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import pandas as pd
from sklearn.exceptions import UndefinedMetricWarning

from monitoring.check_metrics import DomainClassifier, check_metrics
from monitoring.chi_square import two_sample_chi_square
from monitoring.drawing import Drawn, Side
from monitoring.quiet_evidently import quietly

with quietly():
    from evidently import BinaryClassification, DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.core.report import Snapshot
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType
    from evidently.metrics import Accuracy, RecallByLabel, RowCount, ValueDrift

PREDICTED: Final = "predicted"
_TARGET, _PREDICTION = "label", "prediction of labelled rows"


def _homogeneity(
    reference: pd.Series[Any], current: pd.Series[Any], feature_type: ColumnType, threshold: float
) -> tuple[float, bool]:
    p_value = two_sample_chi_square(reference.dropna().to_numpy(), current.dropna().to_numpy())
    return p_value, p_value <= threshold


TWO_SAMPLE_CHI_SQUARE: Final = StatTest(
    name="two_sample_chi_square",
    display_name="two-sample chi-square p_value",
    allowed_feature_types=[ColumnType.Categorical],
)
register_stattest(TWO_SAMPLE_CHI_SQUARE, default_impl=_homogeneity)


def render(drawn: Drawn) -> Snapshot:
    """Run Evidently's report of a check: what it came to first, then the tests of some of its columns, by the same
    functions, with its plots; accuracy and recalls where there are labels enough."""
    numeric = list(drawn.window.columns)
    frames = [_frame(side) for side in (drawn.reference, drawn.window)]
    metrics: list[Any] = [*check_metrics(drawn.numbers), RowCount()]
    metrics += [
        ValueDrift(column=column, method="ks", threshold=drawn.alpha / max(1, drawn.tested)) for column in numeric
    ]
    metrics += [ValueDrift(column=PREDICTED, method=TWO_SAMPLE_CHI_SQUARE.name, threshold=drawn.alpha)]
    metrics += [DomainClassifier(found=dict(drawn.numbers.separations))]
    answered = [frame.loc[frame[_TARGET].notna(), [_TARGET, _PREDICTION]] for frame in frames]
    names = [set(answers.to_numpy().ravel()) for answers in answered]
    # A side with two labels is a binary task to Evidently, of which one has to be the positive one.
    pairs = [each for each in names if len(each) == 2]
    positive = min(set.intersection(*pairs), default=None) if pairs else None
    columns = {"target": _TARGET, "prediction_labels": _PREDICTION}
    if len(answered[0]) and len(answered[1]) >= drawn.least_labels and (positive is not None or not pairs):
        metrics += [Accuracy()]
        if names[1] <= names[0]:  # of a class that only the window has, Evidently draws no recall but raises KeyError
            metrics += [RecallByLabel()]
    definition = DataDefinition(
        numerical_columns=numeric,
        categorical_columns=[PREDICTED, _TARGET, _PREDICTION],
        classification=[
            BinaryClassification(**columns, pos_label=positive) if pairs else MulticlassClassification(**columns)
        ],
    )
    before, now = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    with warnings.catch_warnings():
        # Evidently computes precision for classes nobody predicted, and asks SciPy for exact p-values with ties.
        warnings.filterwarnings("ignore", category=UndefinedMetricWarning)
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        # Where one label is all there is, its confusion matrix is 1 x 1, as it should be.
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        return Report(metrics).run(
            now, before, timestamp=drawn.at, name=drawn.name, metadata=dict(drawn.metadata), tags=list(drawn.tags)
        )


def _frame(side: Side) -> pd.DataFrame:
    frame = pd.DataFrame(dict(side.columns))
    frame[PREDICTED] = list(side.predicted)
    frame[_TARGET] = list(side.labels)
    frame[_PREDICTION] = frame[PREDICTED].where(frame[_TARGET].notna(), None)
    return frame
