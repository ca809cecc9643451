"""The right bytes of a wrong graph: it verifies, and does not do what its manifest and its reference say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from perennial.bundle import GRAPH, Bundle, new_version, write_bundle
from perennial.errors import InvalidBundle
from perennial.images import InputRule
from perennial.settings_sections import RetrainSettings
from training.datasets import LabelledImages, Row
from training.evaluate import score
from training.gate import evaluate, judge
from training.gate_rules import gate_limits
from training.soundness import faults_of, opened


def altered(bundle: Bundle, folder: Path, graph: bytes | None = None, **manifest: Any) -> Bundle:
    """A whole bundle that verifies, of another graph or another manifest."""

    def fill(place: Path) -> None:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, place / name)
        if graph is not None:
            (place / GRAPH).write_bytes(graph)

    changes = {"version": new_version(), "files": {}, **manifest}
    return write_bundle(folder, bundle.manifest.model_copy(update=changes), fill)


def with_classes_in_another_order(graph: Path) -> bytes:
    model = onnx.load(graph)
    for node in model.graph.node:
        node.output[:] = ["in order" if name == "probabilities" else name for name in node.output]
        node.input[:] = ["in order" if name == "probabilities" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 0]), "order"))
    model.graph.node.append(helper.make_node("Gather", ["in order", "order"], ["probabilities"], axis=1))
    return model.SerializeToString()


@pytest.fixture
def held_out(shape_images: LabelledImages) -> list[Row]:
    return list(shape_images.of("test"))


def test_a_graph_that_does_what_its_bundle_says_has_no_faults(shape_bundle: Bundle, held_out: list[Row]) -> None:
    output = score(opened(shape_bundle, threads=1), held_out, shape_bundle.manifest.input)
    assert faults_of(shape_bundle, held_out, output) == ()
    wrong = replace(output, embedding=np.full_like(output.embedding, np.nan), probabilities=output.probabilities * 2)
    not_finite, sums, unlike = faults_of(shape_bundle, held_out, wrong)
    assert not_finite == "the graph's embedding are not finite on every row"
    assert "sum to 1 only within 1" in sums
    assert f"on {len(held_out)} of the {len(held_out)} rows" in unlike


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("disc", "square")}, "gives 3 probabilities an image; by its manifest and reference there are 2"),
        ({"classes": ("disc", "square", "stripes", "star")}, "gives 3 probabilities .* there are 4"),
        ({"properties": ("brightness",)}, "properties an image; by its manifest and reference there are 1"),
        ({"input": InputRule(32, 32)}, "does not run on 32 x 32 pixels"),
    ],
)
def test_a_graph_of_other_shapes_than_the_manifests_is_not_judged(
    shape_bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidBundle, match=message):
        evaluate(shape_bundle, altered(shape_bundle, tmp_path, **changes), fresh=[], old=[], threads=1)


def test_a_graph_that_answers_otherwise_than_its_own_reference_is_refused(
    shape_bundle: Bundle, held_out: list[Row], tmp_path: Path
) -> None:
    wrong = altered(shape_bundle, tmp_path, with_classes_in_another_order(shape_bundle.graph))
    evidence = evaluate(shape_bundle, wrong, fresh=held_out[:9], old=held_out[9:], threads=1)
    [fault] = evidence.faults
    assert "not those of the bundle's own reference" in fault
    decision = judge(evidence, gate_limits(RetrainSettings()))
    assert decision.outcome == "refuse"
    assert "sound" in {rule.name for rule in decision.rules if not rule.passed}
