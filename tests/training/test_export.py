from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from perennial.bundle import Bundle
from perennial.errors import InvalidBundle, InvalidParameter
from perennial.graph import PROPERTIES, Graph
from perennial.images import prepare
from training import backbones, export
from training.datasets import LabelledImages
from training.export import ServedModel, Whitening, export_graph, fit_whitening, save_weights
from training.probe import Probe


@pytest.fixture(scope="module")
def graph(shape_bundle: Bundle) -> Graph:
    return Graph(shape_bundle.graph, threads=1)


@pytest.fixture(scope="module")
def pixels(shape_images: LabelledImages, shape_bundle: Bundle) -> NDArray[np.uint8]:
    rows = shape_images.rows[:10]
    return np.stack([prepare(Path(row.location).read_bytes(), shape_bundle.manifest.input).pixels for row in rows])


def properties(graph: Graph, image: Image.Image, shape_bundle: Bundle) -> dict[str, float]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    prepared = prepare(buffer.getvalue(), shape_bundle.manifest.input)
    return dict(zip(PROPERTIES, graph.run(prepared.pixels[None]).properties[0].tolist(), strict=True))


def test_an_image_gets_the_same_answer_alone_and_in_a_batch(graph: Graph, pixels: NDArray[np.uint8]) -> None:
    together = graph.run(pixels)
    for at in range(len(pixels)):
        alone = graph.run(pixels[at : at + 1])
        assert np.allclose(alone.probabilities[0], together.probabilities[at], atol=1e-5)
        assert np.allclose(alone.embedding[0], together.embedding[at], atol=1e-4)
        assert np.allclose(alone.properties[0], together.properties[at], atol=1e-5)


def test_the_properties_are_those_of_plain_arithmetic(graph: Graph, pixels: NDArray[np.uint8]) -> None:
    images = pixels.astype(np.float64) / 255
    luma = images @ np.array([0.299, 0.587, 0.114])
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian = 255 * (around - 4 * luma[:, 1:-1, 1:-1])
    highest = images.max(axis=3)
    expected = {
        "brightness": luma.mean(axis=(1, 2)),
        "contrast": luma.std(axis=(1, 2)),
        "sharpness": np.log1p(laplacian.var(axis=(1, 2))),
        "saturation": ((highest - images.min(axis=3)) / np.maximum(highest, 1 / 255)).mean(axis=(1, 2)),
        "smoothness": (1 / (1 + laplacian**2)).mean(axis=(1, 2)),
        "red_green": (images[..., 0] - images[..., 1]).mean(axis=(1, 2)),
        "yellow_blue": (images[..., :2].mean(axis=3) - images[..., 2]).mean(axis=(1, 2)),
        **{name: images[..., at].mean(axis=(1, 2)) for at, name in enumerate(("red", "green", "blue"))},
    }
    found = graph.run(pixels).properties
    for at, name in enumerate(PROPERTIES):
        assert np.allclose(found[:, at], expected[name], atol=1e-3), name


def test_properties_move_the_way_the_image_does(graph: Graph, shapes: Path, shape_bundle: Bundle) -> None:
    image = Image.open(shapes / "disc" / "000.png").resize((64, 64))
    plain = properties(graph, image, shape_bundle)
    darker = properties(graph, image.point(lambda value: value // 2), shape_bundle)
    assert darker["brightness"] == pytest.approx(plain["brightness"] / 2, abs=0.01)
    assert darker["contrast"] < plain["contrast"]
    blurred = properties(graph, image.filter(ImageFilter.GaussianBlur(2)), shape_bundle)
    assert blurred["sharpness"] < plain["sharpness"] - 1
    assert blurred["brightness"] == pytest.approx(plain["brightness"], abs=0.02)
    grey = properties(graph, image.convert("L").convert("RGB"), shape_bundle)
    assert grey["saturation"] == pytest.approx(0, abs=1e-5)
    assert grey["red"] == pytest.approx(grey["blue"], abs=1e-5)
    red = properties(graph, Image.new("RGB", (64, 64), (255, 0, 0)), shape_bundle)
    assert (red["red"], red["green"], red["saturation"]) == pytest.approx((1, 0, 1), abs=1e-5)
    assert (red["red_green"], red["yellow_blue"]) == pytest.approx((1, 0.5), abs=1e-5)
    compressed = io.BytesIO()
    image.save(compressed, "JPEG", quality=5)
    assert properties(graph, Image.open(compressed), shape_bundle)["smoothness"] > plain["smoothness"]


@pytest.mark.parametrize("extreme", [0, 255])
def test_an_image_of_one_colour_gives_numbers(extreme: int, graph: Graph, shape_bundle: Bundle) -> None:
    side = shape_bundle.manifest.input.crop
    output = graph.run(np.full((1, side, side, 3), extreme, np.uint8))
    for values in (output.probabilities, output.embedding, output.properties):
        assert np.isfinite(values).all()


def test_a_files_format_changes_no_answer(graph: Graph, shapes: Path, shape_bundle: Bundle) -> None:
    rule = shape_bundle.manifest.input
    worst = 0.0
    for path in sorted(shapes.rglob("00*.png")):
        image = Image.open(path).resize((128, 128))
        answers = []
        for kind, options in (("PNG", {}), ("JPEG", {"quality": 97, "subsampling": 0}), ("WEBP", {"lossless": True})):
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            answers.append(graph.run(prepare(buffer.getvalue(), rule).pixels[None]).probabilities[0])
        assert np.array_equal(answers[0], answers[2])
        worst = max(worst, float(np.abs(answers[0] - answers[1]).max()))
    assert worst < 0.25


# --- whitening -------------------------------------------------------------------------------------------


def test_whitened_training_features_have_unit_variance_and_no_correlation() -> None:
    random = np.random.default_rng(0)
    features = (random.normal(size=(300, 60)) @ random.normal(size=(60, 60)) + 3).astype(np.float32)
    whitening = fit_whitening(features)
    embedding = (features - whitening.centre) @ whitening.components.T
    assert embedding.shape == (300, 32)
    assert np.allclose(np.cov(embedding.T), np.eye(32), atol=1e-3)
    assert np.allclose(embedding.mean(axis=0), 0, atol=1e-3)


def test_few_images_give_fewer_dimensions_and_flat_directions_are_not_blown_up() -> None:
    random = np.random.default_rng(0)
    assert fit_whitening(random.normal(size=(6, 40)).astype(np.float32)).components.shape == (5, 40)
    flat = random.normal(size=(50, 1)) @ random.normal(size=(1, 20)) + 1e-6 * random.normal(size=(50, 20))
    assert np.abs(fit_whitening(flat.astype(np.float32)).components).max() < 1e4
    assert np.isfinite(fit_whitening(np.ones((5, 4), np.float32)).components).all()


# --- writing it ------------------------------------------------------------------------------------------


def model_of(name: str, size: int, classes: int = 3) -> ServedModel:
    backbone = backbones.load(name, "none", image_size=size)
    random = np.random.default_rng(0)
    noise = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = backbone.network(noise).numpy()
    head = (random.normal(size=(classes, backbone.width)) / features.std() / backbone.width).astype(np.float32)
    probe = Probe(head, np.zeros(classes, np.float32), 0.1, {}, 0.0)
    return ServedModel(backbone, probe, 1.5, fit_whitening(features))


def test_another_family_is_exported_too(tmp_path: Path) -> None:
    model = model_of("shufflenet_v2_x0_5", 40)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    export_graph(model, pixels, tmp_path / "graph.onnx")
    output = Graph(tmp_path / "graph.onnx", threads=1).run(pixels)
    with torch.inference_mode():
        probabilities, embedding, of_images = model(torch.from_numpy(pixels))
    assert np.allclose(output.probabilities, probabilities, atol=1e-3)
    assert np.allclose(output.embedding, embedding, atol=1e-3)
    assert np.allclose(output.properties, of_images, atol=1e-3)
    assert np.allclose(output.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 40), ("vit_b_32", 32), ("densenet121", 32)])
def test_tracing_exports_every_kind_of_network_without_the_slow_exporter(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def slow(*_: object) -> None:
        pytest.fail("torch.export was needed")

    monkeypatch.setattr(export, "_exported", slow)
    model = model_of(name, size)
    pixels = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    assert export_graph(model, pixels, tmp_path / "graph.onnx") <= 1e-3
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    operations = {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    assert "BatchNormalization" not in operations or name == "densenet121"  # folded where a convolution is before it
    # The other runtime takes all images at once: no batch size may have got into the graph.
    together = Graph(tmp_path / "graph.onnx", runtime="onnxruntime").run(pixels)
    with torch.inference_mode():
        probabilities, embedding, _ = model(torch.from_numpy(pixels))
    assert np.allclose(together.probabilities, probabilities, atol=1e-3)
    assert np.allclose(together.embedding, embedding, atol=1e-3)


def test_the_same_model_gives_the_same_graph_byte_for_byte(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    for name in ("a", "b"):
        export_graph(model_of("mobilenet_v3_small", 40), pixels, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_tracing_cannot_export_is_left_to_torch_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no word for this operation")

    monkeypatch.setattr(export, "_traced", fail)
    caplog.set_level("INFO", logger="training.export")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    assert export_graph(model_of("squeezenet1_1", 40), pixels, tmp_path / "graph.onnx") <= 1e-3
    assert "tracing does not export this backbone (no word for this operation)" in caplog.text


def test_a_network_that_fills_more_than_one_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("squeezenet1_1", 40)
    monkeypatch.setattr(export, "_MOST_BYTES", 1_000_000)
    with pytest.raises(InvalidParameter, match="one ONNX file holds at most"):
        export_graph(model, np.zeros((3, 40, 40, 3), np.uint8), tmp_path / "graph.onnx")
    assert not (tmp_path / "graph.onnx").exists()


def test_a_graph_that_computes_something_else_is_refused(shape_bundle: Bundle) -> None:
    # The bundle's graph against a model with another head: what a wrong export would look like.
    size = shape_bundle.manifest.input.crop
    model = model_of("mobilenet_v3_small", size)
    pixels = np.random.default_rng(1).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    with pytest.raises(InvalidBundle, match=r"probabilities differs from the model's by .* nothing was published"):
        export._verify(model, pixels, shape_bundle.graph)


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(model_of("squeezenet1_1", 40), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_whitening_is_a_pair_of_arrays() -> None:
    whitening = fit_whitening(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    assert isinstance(whitening, Whitening)
    assert whitening.components.dtype == whitening.centre.dtype == np.float32
