"""Gathered metrics add up to what they would be one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.gathering import Flushing, GatheredCounter, GatheredHistogram


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
