from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from perennial.bundle import Bundle, Manifest
from perennial.errors import InvalidSettings
from perennial.graph import BFLOAT16, FLOAT32, INT8, OPENVINO, Graph, GraphOutput, available_precisions
from perennial.images import ImageLimits
from training import certify, features
from training.datasets import LabelledImages
from training.fit import FitRequest, fit

needs_bfloat16 = pytest.mark.skipif(
    BFLOAT16 not in available_precisions(OPENVINO), reason="this processor has no bfloat16"
)


def answers(labels: list[int], classes: int = 3, embedding: float = 0.0) -> GraphOutput:
    probabilities = np.eye(classes, dtype=np.float32)[labels]
    rows = len(labels)
    return GraphOutput(probabilities, np.full((rows, 2), embedding, np.float32), np.zeros((rows, 7), np.float32))


def certificate_of(answered: GraphOutput, plain: list[int], true: list[int], held_out: list[bool] | None = None):  # type: ignore[no-untyped-def]
    found = certify.certificates(
        {FLOAT32: answers(plain), BFLOAT16: answered},
        {FLOAT32: 1000.0, BFLOAT16: 1500.04},
        true,
        held_out or [True] * len(true),
    )
    assert found[FLOAT32].certified
    assert found[FLOAT32].accuracy_loss == 0
    return found[BFLOAT16]


def test_the_same_labels_are_certified() -> None:
    true = [0, 1, 2, 1] * 50
    found = certificate_of(answers(true), true, true)
    assert (found.certified, found.why, found.rows) == (True, "", 200)
    assert found.agreement.value == found.accuracy.value == 1
    assert found.images_per_second == 1500.0


def test_too_many_other_labels_are_not_certified_even_if_they_are_right() -> None:
    true = [0, 1, 2, 1] * 50
    plain = [1, 2, 0, *true[3:]]  # float32 is wrong on three, the other precision on none
    found = certificate_of(answers(true), plain, true)
    assert found.accuracy_loss < 0
    assert not found.certified
    assert "98.5% of the labels are float32's; 99% is the least" in found.why


def test_lost_accuracy_is_not_certified_though_the_labels_agree() -> None:
    true = [0, 1, 2, 1] * 50
    other = [1, 2, *true[2:]]
    found = certificate_of(answers(other), true, true)
    assert found.agreement.value == 0.99
    assert not found.certified
    assert "accuracy is 1.0% lower" in found.why


def test_rows_that_were_trained_on_say_nothing_about_accuracy() -> None:
    true = [0, 1, 2, 1] * 50
    other = [1, 2, *true[2:]]
    found = certificate_of(answers(other), true, true, [False, False] + [True] * 198)
    assert found.accuracy.value == 1
    assert found.certified


def test_outputs_that_are_not_numbers_are_not_certified() -> None:
    true = [0, 1, 2, 1]
    found = certificate_of(answers(true, embedding=float("nan")), true, true)
    assert (found.certified, found.why) == (False, "some outputs are not numbers")


def test_the_budget_is_written_into_the_certificate(shape_bundle: Bundle) -> None:
    for found in shape_bundle.manifest.certificates.values():
        assert (found.least_agreement, found.most_accuracy_loss) == (0.99, 0.005)
        assert found.rows == 30
        assert found.images_per_second > 10


def test_float32_is_always_certified_and_first(shape_bundle: Bundle) -> None:
    manifest = shape_bundle.manifest
    assert manifest.precisions[0] == FLOAT32
    assert manifest.certificates[FLOAT32].agreement.value == 1
    assert set(manifest.precisions) == {name for name, found in manifest.certificates.items() if found.certified}


@needs_bfloat16
def test_the_bfloat16_reference_is_what_bfloat16_serves_to_the_last_bit(
    shape_bundle: Bundle, shape_images: LabelledImages
) -> None:
    path = shape_bundle.reference_in(BFLOAT16)
    assert path is not None
    rows = parquet.read_table(path).to_pylist()
    plain = parquet.read_table(shape_bundle.reference).to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in plain]
    graph = Graph(shape_bundle.graph_in(BFLOAT16), threads=1, precision=BFLOAT16)
    by_digest = {row.digest: row for row in shape_images.rows}
    _, pixels, _ = features.decode([by_digest[row["id"]] for row in rows], shape_bundle.manifest.input)
    for row, image in zip(rows, pixels, strict=True):
        output = graph.run(image[np.newaxis])
        assert np.array_equal(np.float32(row["probabilities"]), output.probabilities[0])
        assert np.array_equal(np.float32(row["embedding"]), output.embedding[0])
    moved = np.array([row["embedding"] for row in rows]) - np.array([row["embedding"] for row in plain])
    assert np.abs(moved).max() > 1e-3
    properties = [np.array([row["properties"] for row in some]) for some in (rows, plain)]
    assert np.allclose(*properties, atol=1e-5)


def test_a_bundle_from_before_certificates_is_read_and_has_float32(shape_bundle: Bundle) -> None:
    document = shape_bundle.manifest.model_dump(mode="json", exclude={"certificates"})
    manifest = Manifest.model_validate(document | {"precisions": [FLOAT32]})
    assert manifest.certificates == {}


def test_the_report_shows_each_precision(shape_bundle: Bundle) -> None:
    page = shape_bundle.report.read_text("utf-8")
    for precision in shape_bundle.manifest.certificates:
        assert f">{precision}</t" in page


def test_int8_is_written_silently_and_leaves_the_properties_alone(
    shape_bundle: Bundle, shape_images: LabelledImages, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rule = shape_bundle.manifest.input
    _, pixels, _ = features.decode(shape_images.of("train"), rule)
    path = tmp_path / "graph-int8.xml"
    certify.quantise(shape_bundle.graph, pixels, path)
    assert capfd.readouterr().out == ""
    assert path.with_suffix(".bin").stat().st_size < shape_bundle.graph.stat().st_size / 2
    exact = Graph(shape_bundle.graph, threads=1).run(pixels)
    short = Graph(path, threads=1, precision=INT8).run(pixels)
    assert not np.array_equal(exact.embedding, short.embedding)
    assert np.allclose(exact.properties, short.properties, atol=1e-5)
    assert float((exact.probabilities.argmax(1) == short.probabilities.argmax(1)).mean()) >= 0.8


def test_int8_without_nncf_says_how_to_get_it_before_any_work(
    shape_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(certify.importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    request = FitRequest(shape_images, "shapes", "mobilenet_v3_small", "builtin", "linear_probe", 0, seed=0, threads=1)
    with pytest.raises(InvalidSettings, match=r"pip install 'perennial\[int8\]'"):
        fit(replace(request, int8=True), bundles=tmp_path, cache=tmp_path / "cache", limits=ImageLimits())
    assert not list(tmp_path.iterdir())
