from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score

from perennial.bundle import Bundle, open_bundle, reference_name
from perennial.errors import InvalidParameter, WeightsChanged, WeightsUnavailable
from perennial.graph import FLOAT32, PROPERTIES, Graph
from perennial.images import ImageLimits, prepare
from perennial.progress import Step
from perennial.storage import sha256_of_file
from training import evaluate
from training.datasets import LabelledImages, load
from training.fit import FitRequest, fit


def request_for(images: LabelledImages, **changes: object) -> FitRequest:
    plain = FitRequest(images, "shapes", "mobilenet_v3_small", "builtin", "linear_probe", 0, seed=0, threads=1)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_bundle_verifies_and_says_how_it_was_made(shape_bundle: Bundle, shape_images: LabelledImages) -> None:
    manifest = open_bundle(shape_bundle.path, shape_bundle.digest).manifest
    references = {reference_name(precision) for precision in manifest.precisions}
    assert set(manifest.files) == {
        "graph.onnx", "weights.safetensors", *references, "reference-images.parquet", "dataset.parquet", "report.html",
    }  # fmt: skip
    assert manifest.classes == ("disc", "square", "stripes")
    assert manifest.strategy == "linear_probe"
    assert manifest.ladder is not None
    assert manifest.ladder.chosen == "linear_probe"
    assert "42 training images of 3 classes" in manifest.why  # so few that the validation rows are learnt from, too
    assert (manifest.dataset.train, manifest.dataset.validation, manifest.dataset.test) == (30, 12, 18)
    assert manifest.dataset.fingerprint == shape_images.fingerprint
    assert manifest.pretrained.source == "builtin"
    assert len(manifest.pretrained.sha256) == 64
    assert manifest.precisions[0] == FLOAT32
    assert manifest.properties == PROPERTIES
    assert {"python", "torch", "torchvision", "openvino"} <= set(manifest.packages)
    weights = load_file(shape_bundle.weights)
    assert weights["head.weight"].shape == (3, 576)
    assert float(weights["temperature"]) == pytest.approx(manifest.temperature)


def test_each_reference_image_has_a_thumbnail_of_what_the_model_sees(
    shape_bundle: Bundle, shape_images: LabelledImages
) -> None:
    assert shape_bundle.reference_images is not None
    found = parquet.read_table(shape_bundle.reference_images).to_pydict()
    reference = parquet.read_table(shape_bundle.reference, columns=["image_digest"]).to_pydict()
    assert found["image_digest"] == sorted(set(reference["image_digest"]))
    locations = {row.digest: Path(row.location) for row in shape_images.rows}
    for digest, jpeg in zip(found["image_digest"], found["image"], strict=True):
        image = Image.open(io.BytesIO(jpeg))
        seen = prepare(locations[digest].read_bytes(), shape_bundle.manifest.input).pixels
        assert image.format == "JPEG"
        assert max(image.size) <= 96
        whole = np.asarray(image.resize(seen.shape[1::-1]).convert("RGB"), dtype=float)
        assert np.abs(whole - seen).mean() < 20


def test_it_learned_the_shapes(shape_bundle: Bundle) -> None:
    assert shape_bundle.manifest.metrics["accuracy"].value >= 0.75


def test_the_reference_is_the_graphs_own_output_on_the_held_out_images(
    shape_bundle: Bundle, shape_images: LabelledImages
) -> None:
    rows = parquet.read_table(shape_bundle.reference).to_pylist()
    by_digest = {row.digest: row for row in shape_images.rows}
    assert {row["image_digest"] for row in rows} == {row.digest for row in shape_images.rows if row.split != "train"}
    tested = {row.digest for row in shape_images.of("test")}  # so few images that the others are learnt from
    assert all(row["held_out"] == (row["image_digest"] in tested) for row in rows)
    output = evaluate.score(
        Graph(shape_bundle.graph, threads=1),
        [by_digest[row["image_digest"]] for row in rows],
        shape_bundle.manifest.input,
    )
    for at, row in enumerate(rows):
        assert row["label"] == by_digest[row["image_digest"]].label
        assert np.allclose(row["probabilities"], output.probabilities[at], atol=1e-6)
        assert np.allclose(row["embedding"], output.embedding[at], atol=1e-5)
        assert np.allclose(row["properties"], output.properties[at], atol=1e-6)
        assert row["predicted"] == shape_bundle.manifest.classes[int(output.probabilities[at].argmax())]
        assert row["confidence"] == pytest.approx(max(row["probabilities"]))
        with Image.open(by_digest[row["image_digest"]].location) as image:
            sent = (image.format, image.mode, *image.size)
        assert (row["format"], row["mode"], row["width"], row["height"]) == sent
    schema = parquet.read_schema(shape_bundle.reference)
    assert str(schema.field("embedding").type.value_type) == "float"
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_metrics_are_the_test_images_alone(shape_bundle: Bundle, shape_images: LabelledImages) -> None:
    tested = {row.digest for row in shape_images.of("test")}
    rows = [row for row in parquet.read_table(shape_bundle.reference).to_pylist() if row["image_digest"] in tested]
    true, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    metrics = shape_bundle.manifest.metrics
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(true, predicted))
    assert metrics["macro_f1"].value == pytest.approx(f1_score(true, predicted, average="macro"))
    assert metrics["nll"].value > 0
    assert sum(one.support for one in shape_bundle.manifest.per_class.values()) == 18


def test_the_dataset_is_pinned_row_by_row(shape_bundle: Bundle, shape_images: LabelledImages) -> None:
    rows = parquet.read_table(shape_bundle.path / "dataset.parquet").to_pylist()
    assert [(row["location"], row["image_digest"], row["label"], row["split"]) for row in rows] == [
        (row.location, row.digest, row.label, row.split) for row in shape_images.rows
    ]
    assert {(row["weight"], row["origin"]) for row in rows} == {(1.0, "original")}


def test_captures_and_trained_reference_rows_are_marked_and_a_cut_image_is_left_out(
    tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    folder = write_shapes(tmp_path / "data", classes=("disc", "stripes"), count=12, suffix="jpg")
    broken = folder / "disc" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    images = load(str(folder), validation=0.2, test=0.2, seed=0)
    trained = next(row for row in images.of("train") if row.location != str(broken))
    capture = replace(trained, origin="capture", weight=2.0, reference=True)
    images = replace(images, rows=tuple(capture if row is trained else row for row in images.rows))
    steps: list[Step] = []
    fitted = fit(
        request_for(
            images, backbone="squeezenet1_1", weights="none", image_size=40, parent="older", strategy="linear_probe"
        ),
        bundles=tmp_path / "models",
        cache=tmp_path / "cache",
        limits=ImageLimits(),
        progress=steps.append,
    )
    assert [skip.location for skip in fitted.skipped] == [str(broken)]
    reference = parquet.read_table(fitted.bundle.reference).to_pylist()
    held_out = {row["image_digest"]: row["held_out"] for row in reference}
    assert not held_out[capture.digest]
    assert all(held_out[row.digest] for row in images.of("test") if row.digest in held_out)
    pinned = parquet.read_table(fitted.bundle.path / "dataset.parquet").to_pylist()
    assert [row["image_digest"] for row in pinned if row["origin"] == "capture"] == [capture.digest]
    assert len(pinned) == 23
    manifest = fitted.bundle.manifest
    assert (manifest.dataset.captures, manifest.parent) == (1, "older")
    assert manifest.pretrained.model_dump() == {"source": "none", "sha256": ""}
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == [
        "loading the pretrained weights", "embedding images", "trying the lower rungs", "exporting the graph",
        "scoring images",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "models").iterdir()] == [manifest.version]
    report = fitted.bundle.report.read_text("utf-8")
    assert "1 of them were captured" in report
    assert "000.jpg" in report


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"weights": "/nowhere/weights.pth"}, WeightsUnavailable),
        ({"pretrained_sha256": "0" * 64}, WeightsChanged),
        ({"strategy": "magic"}, InvalidParameter),
        ({"backbone": "resnet19"}, InvalidParameter),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(
    changes: dict[str, object], error: type[Exception], shape_images: LabelledImages, tmp_path: Path
) -> None:
    with pytest.raises(error):
        fit(
            request_for(shape_images, **changes),
            bundles=tmp_path / "models",
            cache=tmp_path / "cache",
            limits=ImageLimits(),
        )
    assert not (tmp_path / "models").exists()


# --- the report ------------------------------------------------------------------------------------------


def test_the_report_is_one_file_with_the_numbers_in_it(shape_bundle: Bundle, shape_images: LabelledImages) -> None:
    report = shape_bundle.report.read_text("utf-8")
    accuracy = shape_bundle.manifest.metrics["accuracy"]
    assert f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})" in report
    for text in ("stripes", shape_bundle.manifest.version, shape_images.fingerprint, "mobilenet_v3_small"):
        assert text in report
    assert not re.search(r"<script|<link", report)
    assert len(report) < 5_000_000


# --- real images -----------------------------------------------------------------------------------------


def test_ants_and_bees_reach_nine_in_ten_on_imagenet_weights(test_data: Path, tmp_path: Path) -> None:
    weights = test_data / "weights" / "mobilenet_v2_imagenet.pth"
    began = time.perf_counter()
    images = load(str(test_data / "hymenoptera"), validation=0.15, test=0.15, seed=0)
    assert len(images.of("test")) == 153
    fitted = fit(
        request_for(images, backbone="mobilenet_v2", weights=str(weights)),
        bundles=tmp_path / "models",
        cache=tmp_path / "cache",
        limits=ImageLimits(),
    )
    accuracy = fitted.bundle.manifest.metrics["accuracy"]
    print(f"\nants and bees: {accuracy.value:.4f} ({accuracy.low:.4f} to {accuracy.high:.4f})", end=" ")
    print(f"in {time.perf_counter() - began:.1f} s, of which fit {fitted.seconds:.1f} s")
    assert accuracy.value >= 0.90
    assert fitted.bundle.manifest.pretrained.sha256 == sha256_of_file(weights)
    shutil.rmtree(tmp_path / "models")
