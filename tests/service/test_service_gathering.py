"""Gathered metrics add up to what they would be one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.gathering import Flushing, GatheredCounter, GatheredHistogram, GatheredHistograms
from tests.service.conftest import wait


def test_a_gathered_histogram_is_the_one_that_observing_makes() -> None:
    values = [0.0, 0.1, 0.1000001, 0.25, 0.5, 0.75, 1.0, 7.0, 0.3]
    pages = []
    for gathered in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "how long", buckets=(0.1, 0.5, 1.0), registry=registry)
        target = GatheredHistogram(histogram) if gathered else histogram
        for value in values:
            target.observe(value)
        if isinstance(target, GatheredHistogram):
            assert b"seconds_count 0.0" in generate_latest(registry)
            target.flush()
        pages.append([line for line in generate_latest(registry).splitlines() if b"_created" not in line])
    assert pages[0] == pages[1]


def test_gathered_histograms_are_those_that_observing_makes() -> None:
    values = [("a", 0.0), ("b", 0.1), ("a", 0.2), ("a", 7.0), ("b", 0.5)]
    pages = []
    for gathered in (False, True):
        registry = CollectorRegistry()
        family = Histogram("seconds", "how long", ["route"], buckets=(0.1, 0.5, 1.0), registry=registry)
        if gathered:
            target = GatheredHistograms(family)
            for each in values:
                target.observe(each)
            target.flush()
            target.flush()
        else:
            for route, value in values:
                family.labels(route).observe(value)
        pages.append([line for line in generate_latest(registry).splitlines() if b"_created" not in line])
    assert pages[0] == pages[1]


def test_a_count_is_there_before_it_is_added_to() -> None:
    registry = CollectorRegistry()
    counter = GatheredCounter(Counter("requests", "what", ["status"], registry=registry))
    counter.begin(500)
    assert registry.get_sample_value("requests_total", {"status": "500"}) == 0


def test_a_gauge_is_sampled_at_once_and_again_and_again() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("queue", "how full", registry=registry)
    flushing, taken = Flushing(), [3]
    flushing.sample(gauge, lambda: taken[0])
    assert registry.get_sample_value("queue") == 3
    flushing.start()
    taken[0] = 5
    assert wait(lambda: registry.get_sample_value("queue") == 5)
    flushing.close()


def test_nothing_is_lost_while_it_is_flushed() -> None:
    registry = CollectorRegistry()
    counter = GatheredCounter(Counter("things", "what", ["kind"], registry=registry))
    flushing = Flushing(counter)
    flushing.start()

    def add(number: int) -> None:
        counter.add((f"kind {number % 2}",))
        if number % 50 == 0:
            flushing.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(10_000)))
    flushing.close()
    for kind in ("kind 0", "kind 1"):
        assert registry.get_sample_value("things_total", {"kind": kind}) == 5000
