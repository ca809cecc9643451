"""One Evidently report a check: every test in it is chosen here, none is Evidently's default.

Evidently computes and draws; `detectors.py` decides. Importing this module costs seconds and some 280 MB, so only
`check.py` does, when it runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.exceptions import UndefinedMetricWarning

from monitoring.detectors import two_sample_chi_square, usable
from monitoring.embedding import Separation, separate, separate_within, separate_within_grown
from monitoring.window import Reference, Scores

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by evidently on import

with warnings.catch_warnings():
    # Evidently touches numpy.core and litestar's old names while it is imported; nothing we could do better.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", module=r"litestar\..*")
    from evidently import DataDefinition, Dataset, MulticlassClassification, Report
    from evidently.core.metric_types import ByLabelCalculation, ByLabelMetric, ByLabelValue
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType
    from evidently.metrics import Accuracy, RecallByLabel, RowCount, ValueDrift

CONFIDENCE: Final = "confidence"
PREDICTED: Final = "predicted"
#: Probabilities tested by column: of many classes, those the reference gives the most. The rest is covered by the
#: confidence and by the class mix.
MOST_PROBABILITIES: Final = 32
_WITHIN, _GROWN = "_within_classes", "_within_grown_classes"
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


class DomainClassifier(ByLabelMetric):  # type: ignore[misc]  # evidently has no types
    """Can the window's embeddings be told from the reference's? See `monitoring.embedding`.

    Gives `auc` and `p_value` over all rows and, with the class mix taken out, the same with `_within_classes` and
    `_within_grown_classes`; those that cannot be computed are left out.
    """

    columns: list[str]
    classes: str
    seed: int = 0


class DomainClassifierCalculation(ByLabelCalculation[DomainClassifier]):  # type: ignore[misc]  # evidently has no types
    def calculate(
        self, context: Any, current_data: Dataset, reference_data: Dataset | None
    ) -> tuple[ByLabelValue, ByLabelValue | None]:
        if reference_data is None:
            raise ValueError("the domain classifier needs a reference")
        left, left_classes = self._rows(reference_data)
        right, right_classes = self._rows(current_data)
        values = {}
        overall = separate(left, right, seed=self.metric.seed)
        within = separate_within(left, left_classes, right, right_classes, seed=self.metric.seed)
        grown = separate_within_grown(left, left_classes, right, right_classes, seed=self.metric.seed)
        for suffix, separation in (("", overall), (_WITHIN, within), (_GROWN, grown)):
            if separation is not None:
                values[f"auc{suffix}"] = separation.auc
                values[f"p_value{suffix}"] = separation.p_value
        return self.result(values), None

    def display_name(self) -> str:
        return "Domain classifier on embeddings"

    def _rows(self, data: Dataset) -> tuple[Any, Any]:
        frame = data.as_dataframe()
        rows = frame[self.metric.columns].to_numpy(np.float64)
        kept = np.isfinite(rows).all(axis=1)
        return rows[kept], frame[self.metric.classes].to_numpy(str)[kept]


@dataclass(frozen=True, slots=True)
class Measured:
    """The report's numbers. `p_values` is by column (not corrected); `html` is the page for people."""

    p_values: dict[str, float]
    class_mix: float | None
    separation: Separation | None
    separation_within: Separation | None
    separation_within_grown: Separation | None
    html: str


def property_columns(reference: Reference, scores: Scores) -> dict[str, Any]:
    """The properties by column name."""
    return {f"property:{name}": scores.properties[:, index] for index, name in enumerate(reference.properties)}


def output_columns(reference: Reference, scores: Scores) -> dict[str, Any]:
    """The class probabilities and the confidence by column name."""
    shares = np.nan_to_num(reference.scores.probabilities).mean(axis=0)
    tested = sorted(np.argsort(-shares, kind="stable")[:MOST_PROBABILITIES])
    columns = {f"probability:{reference.classes[index]}": scores.probabilities[:, index] for index in tested}
    return {**columns, CONFIDENCE: scores.confidence}


def measure(
    reference: Reference,
    window: Scores,
    *,
    alpha: float,
    least_labels: int,
    at: datetime,
    name: str,
    metadata: Mapping[str, str],
) -> Measured:
    """Run the report of a check. The reference's held-out rows stand for outputs and labels, all rows for the rest."""
    left = {**property_columns(reference, reference.scores), **output_columns(reference, reference.scores)}
    right = {**property_columns(reference, window), **output_columns(reference, window)}
    for column in output_columns(reference, reference.scores):
        left[column] = np.where(reference.held_out, left[column], np.nan)
    numeric = [column for column in left if usable(left[column], right[column]) is None]
    components = [
        index
        for index in range(reference.scores.embedding.shape[1])
        if usable(reference.scores.embedding[:, index], window.embedding[:, index]) is None
    ]
    embedding = [f"embedding:{index}" for index in components]

    frames = []
    for scores, columns, held_out in (
        (reference.scores, left, reference.held_out),
        (window, right, np.ones(len(window), dtype=bool)),
    ):
        frame = pd.DataFrame({column: _finite(columns[column]) for column in numeric})
        frame[embedding] = _finite(scores.embedding[:, components])
        predicted = scores.predicted.astype(str)
        frame["class"] = predicted
        frame[PREDICTED] = [guess if kept else None for guess, kept in zip(predicted, held_out, strict=True)]
        frame[_TARGET] = [label if kept else None for label, kept in zip(scores.labels, held_out, strict=True)]
        frame[_PREDICTION] = frame[PREDICTED].where(frame[_TARGET].notna(), None)
        frames.append(frame)

    metrics: list[Any] = [RowCount()]
    metrics += [ValueDrift(column=column, method="ks", threshold=alpha / len(numeric)) for column in numeric]
    metrics += [ValueDrift(column=PREDICTED, method=TWO_SAMPLE_CHI_SQUARE.name, threshold=alpha)]
    metrics += [DomainClassifier(columns=embedding, classes="class")] if embedding else []
    answered = [frame.loc[frame[_TARGET].notna(), [_TARGET, _PREDICTION]] for frame in frames]
    if len(answered[0]) and len(answered[1]) >= least_labels:
        metrics += [Accuracy()]
        names = [set(answers.to_numpy().ravel()) for answers in answered]
        if names[1] <= names[0]:  # of a class that only the window has, Evidently draws no recall but raises KeyError
            metrics += [RecallByLabel()]
    definition = DataDefinition(
        numerical_columns=[*numeric, *embedding],
        categorical_columns=["class", PREDICTED, _TARGET, _PREDICTION],
        classification=[MulticlassClassification(target=_TARGET, prediction_labels=_PREDICTION)],
    )
    before, now = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    with warnings.catch_warnings():
        # Evidently computes precision for classes nobody predicted, and asks SciPy for exact p-values with ties.
        warnings.filterwarnings("ignore", category=UndefinedMetricWarning)
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        run = Report(metrics).run(now, before, timestamp=at, name=name, metadata=dict(metadata))
    return _numbers(run.dict()["metrics"], run.get_html_str(as_iframe=False))


def _finite(values: Any) -> Any:
    """As float64, with NaN for infinities: Evidently leaves NaN out, and stumbles over the others."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _numbers(results: list[dict[str, Any]], html: str) -> Measured:
    p_values: dict[str, float] = {}
    separation: dict[str, float] = {}
    for result in results:
        kind = str(result["config"]["type"]).rsplit(":", 1)[-1]
        if kind == ValueDrift.__name__:
            p_values[result["config"]["column"]] = float(result["value"])
        elif kind == DomainClassifier.__name__:
            separation = result["value"]
    return Measured(
        p_values,
        p_values.pop(PREDICTED, None),
        _separation(separation, ""),
        _separation(separation, _WITHIN),
        _separation(separation, _GROWN),
        html,
    )


def _separation(values: Mapping[str, float], suffix: str) -> Separation | None:
    if f"auc{suffix}" not in values:
        return None
    return Separation(float(values[f"auc{suffix}"]), float(values[f"p_value{suffix}"]))
