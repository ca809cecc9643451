"""What a check found, as metrics of Evidently: the report shows them, the workspace draws them over time.

Evidently computes none of these. Each is told its numbers, so that what is drawn is what was decided.
"""

from __future__ import annotations

from typing import Any

from monitoring.drawing import Numbers
from monitoring.quiet_evidently import quietly

with quietly():
    from evidently import Dataset
    from evidently.core.metric_types import (
        ByLabelCalculation,
        ByLabelMetric,
        ByLabelValue,
        CountCalculation,
        CountMetric,
        CountValue,
        MetricCalculationBase,
        MetricConfig,
    )
    from evidently.legacy.renderers.html_widgets import CounterData, counter


def _config(calculation: MetricCalculationBase) -> MetricConfig:
    """A metric's parameters without what was found: they tell the series of a dashboard apart, and each check would be
    a series of its own."""
    config = MetricCalculationBase.to_metric_config(calculation)
    parameters = {name: value for name, value in config.params.items() if name != "found"}
    return MetricConfig(metric_id=config.metric_id, params=parameters)


def _told(
    calculation: Any, context: Any, current_data: Dataset, reference_data: Dataset | None
) -> tuple[ByLabelValue, ByLabelValue | None]:
    """Computes nothing: what the metric shows is what it was told."""
    return calculation.result(calculation.metric.found), None


class CheckVerdict(ByLabelMetric):  # type: ignore[misc]  # evidently has no types
    """1 for the verdict of the check, 0 for each of the others."""

    found: dict[str, float]


class CheckVerdictCalculation(ByLabelCalculation[CheckVerdict]):  # type: ignore[misc]  # evidently has no types
    to_metric_config = _config

    def calculate(
        self, context: Any, current_data: Dataset, reference_data: Dataset | None
    ) -> tuple[ByLabelValue, ByLabelValue | None]:
        result = self.result(self.metric.found)
        said = max(self.metric.found, key=lambda verdict: self.metric.found[verdict])
        result.widget = [counter(title=self.display_name(), counters=[CounterData(label="", value=said)])]
        return result, None

    def display_name(self) -> str:
        return "Verdict"


class CheckAccuracy(ByLabelMetric):  # type: ignore[misc]  # evidently has no types
    """The accuracy `by labels`, `estimated` and `in the reference`; what is not known is left out."""

    found: dict[str, float]


class CheckAccuracyCalculation(ByLabelCalculation[CheckAccuracy]):  # type: ignore[misc]  # evidently has no types
    to_metric_config, calculate = _config, _told

    def display_name(self) -> str:
        return "Accuracy as the check found it"


class DriftedColumns(CountMetric):  # type: ignore[misc]  # evidently has no types
    """How many of the tested columns raised an alarm: the properties, the outputs and the predicted class.

    `found` has `drifted` and `tested`, which is not 0. (Evidently's `DriftedColumnsCount` would test anew, in its own
    way.)
    """

    found: dict[str, int]


class DriftedColumnsCalculation(CountCalculation[DriftedColumns]):  # type: ignore[misc]  # evidently has no types
    to_metric_config = _config

    def calculate(
        self, context: Any, current_data: Dataset, reference_data: Dataset | None
    ) -> tuple[CountValue, CountValue | None]:
        drifted, tested = self.metric.found["drifted"], self.metric.found["tested"]
        return self.result(drifted, drifted / tested), None

    def display_name(self) -> str:
        return "Columns that raised an alarm"


class DomainClassifier(ByLabelMetric):  # type: ignore[misc]  # evidently has no types
    """Can the window's embeddings be told from the reference's? As `monitoring.embedding` found.

    Shows `auc` and `p_value` over all rows and, with the class mix taken out, the same with `_within_classes` and
    `_within_grown_classes`; those that could not be computed are left out.
    """

    found: dict[str, float]


class DomainClassifierCalculation(ByLabelCalculation[DomainClassifier]):  # type: ignore[misc]  # evidently has no types
    to_metric_config, calculate = _config, _told

    def display_name(self) -> str:
        return "Domain classifier on embeddings"


def check_metrics(numbers: Numbers) -> list[Any]:
    """The metrics that say what a check came to."""
    told = {CheckVerdict: numbers.verdicts, DriftedColumns: numbers.drifted, CheckAccuracy: numbers.accuracies}
    return [metric(found=dict(found)) for metric, found in told.items() if found]
