"""One Evidently report a check: every test in it is chosen here, none is Evidently's default.

Evidently draws for people what `two_sample.py` computed and `detectors.py` decided. Importing this module costs seconds
and some 280 MB, so only `check.py` does, when there is something to show.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning

from monitoring.check_metrics import DomainClassifier
from monitoring.detectors import two_sample_chi_square
from monitoring.quiet_evidently import quietly
from monitoring.two_sample import Measured, output_columns, property_columns
from monitoring.window import Reference, Scores

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


def render(
    reference: Reference,
    window: Scores,
    measured: Measured,
    *,
    alpha: float,
    least_labels: int,
    at: datetime,
    name: str,
    metadata: Mapping[str, str],
    tags: Sequence[str] = (),
    found: Sequence[Any] = (),
) -> Snapshot:
    """Run Evidently's report of a check: `found` first (of `check_metrics`), the tests of `measured`, by the same
    functions, with its plots; accuracy and recalls where there are labels enough."""
    numeric = list(measured.p_values)
    frames = [
        _frame(reference, reference.scores, numeric, reference.held_out),
        _frame(reference, window, numeric, np.ones(len(window), dtype=bool)),
    ]
    metrics: list[Any] = [*found, RowCount()]
    metrics += [ValueDrift(column=column, method="ks", threshold=alpha / len(numeric)) for column in numeric]
    metrics += [ValueDrift(column=PREDICTED, method=TWO_SAMPLE_CHI_SQUARE.name, threshold=alpha)]
    metrics += [DomainClassifier(found=_found(measured))]
    answered = [frame.loc[frame[_TARGET].notna(), [_TARGET, _PREDICTION]] for frame in frames]
    names = [set(answers.to_numpy().ravel()) for answers in answered]
    # A side with two labels is a binary task to Evidently, of which one has to be the positive one.
    pairs = [each for each in names if len(each) == 2]
    positive = min(set.intersection(*pairs), default=None) if pairs else None
    columns = {"target": _TARGET, "prediction_labels": _PREDICTION}
    if len(answered[0]) and len(answered[1]) >= least_labels and (positive is not None or not pairs):
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
        return Report(metrics).run(now, before, timestamp=at, name=name, metadata=dict(metadata), tags=list(tags))


def _frame(reference: Reference, scores: Scores, numeric: list[str], held_out: NDArray[np.bool_]) -> pd.DataFrame:
    """Outputs and labels of rows that are not held out are left out."""
    outputs = {name: np.where(held_out, column, np.nan) for name, column in output_columns(reference, scores).items()}
    columns = {**property_columns(reference, scores), **outputs}
    frame = pd.DataFrame({name: _finite(columns[name]) for name in numeric})
    frame[PREDICTED] = _only(held_out, scores.predicted.astype(str))
    frame[_TARGET] = _only(held_out, scores.labels)
    frame[_PREDICTION] = frame[PREDICTED].where(frame[_TARGET].notna(), None)
    return frame


def _only(kept: NDArray[np.bool_], values: Sequence[str | None] | NDArray[Any]) -> list[str | None]:
    return [value if there else None for value, there in zip(values, kept, strict=True)]


def _finite(values: Any) -> Any:
    """As float64, with NaN for infinities: Evidently leaves NaN out, and stumbles over the others."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _found(measured: Measured) -> dict[str, float]:
    separations = {
        "": measured.separation, "_within_classes": measured.within, "_within_grown_classes": measured.within_grown,
    }  # fmt: skip
    return {
        f"{name}{suffix}": float(value)
        for suffix, found in separations.items()
        if found is not None
        for name, value in (("auc", found.auc), ("p_value", found.p_value))
    }
