"""What a challenger learns from is compared on the features that it will learn on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perennial.bundle import Ladder, Signals
from perennial.images import ImageLimits
from tests.training.retrain_world import World, truth
from training import captures as labelled
from training import challenger as making
from training.candidates import NAMES, Choice
from training.challenger import make_challenger
from training.fit import FitRequest, Fitted
from training.simple_features import WIDTH

SIGNALS = Signals(images=1, classes=3, fewest_in_a_class=1, similarity=0.0, h_score=0.0, expected_gain={})
BY_AUTO = Ladder(chosen="simple", selection="", budget=1.0, rungs=(), signals=SIGNALS)


@pytest.mark.parametrize(
    ("strategy", "ladder", "asked", "width"),
    [("simple", None, "simple", WIDTH), ("simple", BY_AUTO, "auto", 512), ("majority", None, "majority", None)],
)
def test_rows_are_compared_on_what_the_strategy_learns_on(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    ladder: Ladder | None,
    asked: str,
    width: int | None,
) -> None:
    world.serve(60, inverted=True, relabel=truth)
    manifest = world.champion.manifest.model_copy(update={"strategy": strategy, "ladder": ladder})
    found = labelled.find(world.engine, "default", manifest.version, window=100, classes=manifest.classes)
    widths: list[int] = []
    requests: list[FitRequest] = []
    compare = making.choose

    def choose(images: Any, rows: Any, features: np.ndarray[Any, Any], *rest: Any, **options: Any) -> Any:
        widths.append(features.shape[1])
        return compare(images, rows, features, *rest, **options)

    def fit(request: FitRequest, **options: Any) -> Fitted:
        requests.append(request)
        return Fitted(world.champion, 0.0)

    monkeypatch.setattr(making, "choose", choose)
    monkeypatch.setattr(making, "fit", fit)
    champion = replace(world.champion, manifest=manifest)
    choice: Choice = make_challenger(champion, found, world.settings, limits=ImageLimits()).choice
    assert [request.strategy for request in requests] == [asked]
    assert widths == ([] if width is None else [width])
    assert {one.name for one in choice.tried} == (set() if width is None else set(NAMES))
