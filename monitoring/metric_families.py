"""Prometheus metrics that are read at each scrape: declared once, so that docs/metrics.md can list them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric without its numbers; the name of a counter is without `_total`."""

    kind: Literal["counter", "gauge"]
    name: str
    text: str
    labels: tuple[str, ...] = ()

    def family(self) -> Metric:
        made = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return made(self.name, self.text, labels=self.labels)


class Scrape:
    """The numbers of one scrape."""

    def __init__(self) -> None:
        self._families: dict[Declared, Metric] = {}

    def add(self, metric: Declared, value: float, *labels: str) -> None:
        """One number, with the values of the metric's labels."""
        family = self._families.setdefault(metric, metric.family())
        family.add_metric(list(labels), float(value))  # type: ignore[attr-defined]  # both kinds have it

    def families(self) -> Iterator[Metric]:
        yield from self._families.values()
