"""The gate asks a model only what it has not answered already, and checks what it takes for known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perennial.bundle import Bundle
from perennial.graph import Graph, GraphOutput
from perennial.images import ImageLimits, Pixels
from perennial.progress import Step
from perennial.settings_sections import RetrainSettings
from tests.training.test_soundness import altered, with_classes_in_another_order
from training import answers as asking
from training.answers import Answers, answers, recorded
from training.datasets import LabelledImages, Row
from training.evaluate import score
from training.fit import FitRequest, Fitted, fit
from training.gate import Evidence, evaluate, judge
from training.gate_rules import gate_limits

SAMPLE = 4


class CountingGraph(Graph):
    """How many images it was asked about."""

    asked = 0

    def run(self, pixels: Pixels) -> GraphOutput:
        self.asked += len(pixels)
        return super().run(pixels)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SAMPLE", SAMPLE)


@pytest.fixture(scope="module")
def challenger(shape_images: LabelledImages, shape_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("challenger")
    request = FitRequest(shape_images, "shapes", "mobilenet_v3_small", "builtin", "simple", 0, seed=1, threads=1)
    return fit(request, bundles=folder, cache=shape_bundle.path.parent.parent / "cache", limits=ImageLimits())


@pytest.fixture
def held_out(shape_images: LabelledImages) -> list[Row]:
    return list(shape_images.of("test"))


def judged(
    champion: Bundle, challenger: Bundle, rows: list[Row], known: dict[str, Answers] | None = None
) -> tuple[Evidence, int]:
    """What the gate sees, and how many images it scored for it."""
    scored: list[int] = []

    def progress(step: Step) -> None:
        if step.done == step.total:
            scored.append(step.total)

    evidence = evaluate(champion, challenger, fresh=rows[:9], old=rows[9:], known=known, threads=1, progress=progress)
    return replace(evidence, costs=None), sum(scored)


def test_the_decision_is_the_same_and_fewer_rows_are_scored_for_it(
    shape_bundle: Bundle, challenger: Fitted, held_out: list[Row]
) -> None:
    plain, all_rows = judged(shape_bundle, challenger.bundle, held_out)
    known = {"champion": recorded(shape_bundle), "challenger": recorded(challenger.bundle)}
    found, some_rows = judged(shape_bundle, challenger.bundle, held_out, known)
    assert found == plain
    assert found.fresh.champion != found.fresh.challenger
    limits = gate_limits(RetrainSettings())
    assert judge(found, limits) == judge(plain, limits)
    assert (all_rows, some_rows) == (len(held_out), SAMPLE)


def test_what_training_scored_is_what_the_graph_says(
    shape_bundle: Bundle, challenger: Fitted, held_out: list[Row]
) -> None:
    for bundle, known in ((shape_bundle, recorded(shape_bundle)), (challenger.bundle, recorded(challenger.bundle))):
        assert {row.digest for row in held_out} <= set(known.digests)
        said = score(Graph(bundle.graph, threads=1), held_out, bundle.manifest.input)
        for at, row in enumerate(held_out):
            probabilities, embedding, _ = known.by_digest()[row.digest]
            np.testing.assert_allclose(probabilities, said.probabilities[at], atol=1e-5)
            np.testing.assert_allclose(embedding, said.embedding[at], atol=1e-3)


def test_only_unknown_rows_and_the_sample_are_asked(shape_bundle: Bundle, held_out: list[Row]) -> None:
    graph, rule = CountingGraph(shape_bundle.graph, threads=1), shape_bundle.manifest.input
    whole = recorded(shape_bundle)
    assert whole.output is not None
    known = [at for at, digest in enumerate(whole.digests) if digest not in {row.digest for row in held_out[:3]}]
    part = Answers(
        tuple(whole.digests[at] for at in known),
        GraphOutput(whole.output.probabilities[known], whole.output.embedding[known], whole.output.properties[known]),
    )
    found = answers({"it": graph}, {"it": rule}, held_out, {"it": part}, threads=1)["it"]
    assert graph.asked == 3 + SAMPLE
    plain = score(graph, held_out, rule)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-5)
    assert found.embedding.shape == plain.embedding.shape
    assert found.properties.shape == plain.properties.shape


def test_a_row_whose_known_answer_is_not_a_number_is_asked(shape_bundle: Bundle, held_out: list[Row]) -> None:
    graph, rule = CountingGraph(shape_bundle.graph, threads=1), shape_bundle.manifest.input
    known = recorded(shape_bundle)
    assert known.output is not None
    known.output.embedding[known.digests.index(held_out[-1].digest)] = np.nan
    found = answers({"it": graph}, {"it": rule}, held_out, {"it": known}, threads=1)["it"]
    assert graph.asked == 1 + SAMPLE
    assert np.isfinite(found.embedding).all()


def test_a_champion_whose_reference_says_otherwise_is_asked_everything(
    shape_bundle: Bundle, challenger: Fitted, held_out: list[Row], tmp_path: Path
) -> None:
    champion = altered(shape_bundle, tmp_path, with_classes_in_another_order(shape_bundle.graph))
    plain, _ = judged(champion, challenger.bundle, held_out)
    known = {"champion": recorded(champion), "challenger": recorded(challenger.bundle)}
    found, scored = judged(champion, challenger.bundle, held_out, known)
    assert found == plain
    assert scored == len(held_out)
    assert found.faults == ()


@pytest.mark.parametrize("width", [1, 4])
def test_known_answers_of_other_shapes_count_for_nothing(shape_bundle: Bundle, held_out: list[Row], width: int) -> None:
    graph, rule = CountingGraph(shape_bundle.graph, threads=1), shape_bundle.manifest.input
    digests = tuple(row.digest for row in held_out)
    other = Answers(digests, GraphOutput(*(np.zeros((len(digests), width), np.float32) for _ in range(3))))
    found = answers({"it": graph}, {"it": rule}, held_out, {"it": other}, threads=1)["it"]
    assert graph.asked == len(held_out)
    assert found.probabilities.shape == (len(held_out), 3)


def test_a_challenger_that_answers_otherwise_than_what_is_known_is_asked_everything_and_refused(
    shape_bundle: Bundle, held_out: list[Row], tmp_path: Path
) -> None:
    wrong = altered(shape_bundle, tmp_path, with_classes_in_another_order(shape_bundle.graph))
    known = {"champion": recorded(shape_bundle), "challenger": recorded(wrong)}
    evidence, scored = judged(shape_bundle, wrong, held_out, known)
    assert evidence == judged(shape_bundle, wrong, held_out)[0]
    [fault] = evidence.faults
    assert f"on {len(held_out)} of the {len(held_out)} rows" in fault
    assert scored == len(held_out)
    decision = judge(evidence, gate_limits(RetrainSettings()))
    assert "sound" in {rule.name for rule in decision.rules if not rule.passed}
