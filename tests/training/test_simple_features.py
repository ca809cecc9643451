from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from training.simple_features import WIDTH, SimpleFeatures, simple_features


def images(side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Noise; one colour; a black and a white half; a ramp."""
    found = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    found[1] = (200, 31, 32)
    found[2, :, : side // 2], found[2, :, side // 2 :] = 0, 255
    found[3] = np.linspace(0, 255, side).astype(np.uint8)[:, None, None]
    return found


@pytest.mark.parametrize("side", [16, 48, 224, 299])
def test_the_network_computes_the_same_numbers(side: int) -> None:
    pixels = images(side)
    expected = simple_features(pixels)
    assert expected.shape == (4, WIDTH)
    assert expected.dtype == np.float32
    assert np.abs(SimpleFeatures(side)(torch.from_numpy(pixels)).numpy() - expected).max() < 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_network_can_be_exported_and_served(tmp_path: Path) -> None:
    pixels = images(48)
    torch.onnx.export(
        SimpleFeatures(48),
        (torch.from_numpy(pixels[:2]),),
        str(tmp_path / "simple.onnx"),
        input_names=["pixels"],
        dynamic_axes={"pixels": {0: "n"}},
        opset_version=20,
        dynamo=False,
    )
    graph = openvino.Core().compile_model(tmp_path / "simple.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 4):
        assert np.abs(graph(pixels[:count])[0] - simple_features(pixels[:count])).max() < 1e-4


def test_a_row_says_how_much_there_is_of_each_colour() -> None:
    one_colour, halves = simple_features(images(48))[1:3]
    red, green, blue = one_colour[:24].reshape(3, 8)
    assert [int(channel.argmax()) for channel in (red, green, blue)] == [200 // 32, 0, 1]
    assert np.allclose([red.max(), green.max(), blue.max()], 1)
    joint = halves[24:88].reshape(4, 4, 4)
    assert np.allclose([joint[0, 0, 0], joint[3, 3, 3]], np.sqrt(0.5))
    assert np.isclose((joint**2).sum(), 1)


def test_a_row_says_where_it_is_bright_and_where_there_is_texture() -> None:
    pixels = np.full((1, 48, 48, 3), 100, np.uint8)
    pixels[0, :6, 42:] = np.random.default_rng(0).integers(150, 251, (6, 6, 1))
    texture, bright = simple_features(pixels)[0, 88:].reshape(2, 8, 8)
    for found in (texture, bright):
        assert found.argmax() == 7
    assert np.allclose(np.delete(bright.ravel(), 7), 100 / 255)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    pixels = images(48)
    assert np.array_equal(simple_features(pixels)[2], simple_features(pixels[2:3])[0])


def test_cells_need_not_divide_the_image() -> None:
    flat = np.full((1, 50, 50, 3), 51, np.uint8)
    assert np.allclose(simple_features(flat)[0, -64:], 51 / 255)
