from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import backbones, embedder
from training.backbones import Backbone

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)


class Steps(nn.Module):
    """A network whose way depends on what it sees, which a trace cannot hold."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean(dim=(2, 3))
        return pooled if float(images[0].mean()) > 0 else -pooled


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        attended: Tensor = self.layer(images.mean(dim=1))
        return attended.mean(dim=1)


class SingularValues(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(images.mean(dim=1))
        return values


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbones.load("squeezenet1_1", "none", image_size=48)


def test_openvino_computes_what_torch_does(backbone: Backbone) -> None:
    fast = embedder.compiled(backbone, PIXELS, threads=1)
    assert fast.arithmetic == embedder.OPENVINO
    plain = embedder.TorchEmbedder(backbone)
    assert np.allclose(fast(PIXELS), plain(PIXELS), atol=1e-4)


def test_attention_is_converted_too(backbone: Backbone) -> None:
    tiny = replace(backbone, network=Attention().eval(), width=48)
    assert embedder.compiled(tiny, PIXELS, threads=1).arithmetic == embedder.OPENVINO


@pytest.mark.parametrize("fast", [True, False])
def test_a_row_does_not_depend_on_the_batch_it_comes_in(backbone: Backbone, fast: bool) -> None:
    forward = embedder.OpenVinoEmbedder(backbone, threads=2) if fast else embedder.TorchEmbedder(backbone)
    together = forward(PIXELS)
    assert np.array_equal(together, np.concatenate([forward(PIXELS[at : at + 1]) for at in range(3)]))
    assert forward(PIXELS[:0]).shape == (0, backbone.width)


@pytest.mark.parametrize(
    ("network", "why"), [(Steps(), "OpenVINO is off by"), (SingularValues(), "OpenVINO cannot take it")]
)
def test_what_openvino_cannot_do_is_left_to_torch_and_said_so(
    backbone: Backbone,
    network: nn.Module,
    why: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    odd = replace(backbone, network=network, width=network(torch.zeros(1, 3, 48, 48)).shape[1])
    bright = np.full_like(PIXELS, 250)
    with caplog.at_level(logging.INFO, logger="training.embedder"):
        forward = embedder.compiled(odd, bright, threads=1)
    assert forward.arithmetic == embedder.TORCH
    assert why in caplog.text
    assert capfd.readouterr().out == ""
    assert forward(PIXELS).shape == (3, odd.width)
