from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import backbones, stages
from training.backbones import Backbone, normalised
from training.front import Front

SIZE = 48
VIEWS = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 255.0


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbones.load("mobilenet_v3_small", "builtin", image_size=SIZE)


def fabric(precision: Any = "32-true") -> Any:
    from lightning_fabric import Fabric  # which brings torch's compiler

    found = Fabric(accelerator="cpu", devices=1, precision=precision)
    found.launch()
    return found


def of_torch(module: nn.Module, backbone: Backbone) -> Tensor:
    with torch.inference_mode():
        result: Tensor = module(normalised(VIEWS.permute(0, 2, 3, 1), backbone))
    return result


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_it_computes_what_torch_does_on_any_number_of_threads(
    backbone: Backbone, threads: int, thread_count: Callable[[int], None]
) -> None:
    thread_count(threads)
    module, _ = stages.split(backbone, 2)
    front = Front(module.eval(), backbone, fabric())
    assert not front.empty
    torch.testing.assert_close(front(VIEWS), of_torch(module, backbone), atol=1e-3, rtol=1e-3)


def test_other_weights_under_the_same_name_are_not_taken_for_those_compiled_last(backbone: Backbone) -> None:
    module, _ = stages.split(backbone, 2)
    before = Front(module.eval(), backbone, fabric())(VIEWS)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)
    found = Front(other, backbone, fabric())(VIEWS)
    torch.testing.assert_close(found, of_torch(other, backbone), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found, before, atol=1e-2)


def test_in_half_precision_the_numbers_are_float32s_rounded(backbone: Backbone) -> None:
    module, _ = stages.split(backbone, 2)
    plain = Front(module.eval(), backbone, fabric())(VIEWS)
    half = Front(module, backbone, fabric("bf16-mixed"))(VIEWS)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, plain.to(torch.bfloat16))


def test_without_a_frozen_part_images_are_normalised(backbone: Backbone) -> None:
    module, _ = stages.split(backbone, 0)
    front = Front(module, backbone, fabric())
    assert front.empty
    torch.testing.assert_close(front(VIEWS), normalised(VIEWS.permute(0, 2, 3, 1), backbone))


class SingularValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(images.mean(dim=1)) * self.scale
        return values


def test_what_openvino_does_not_take_is_left_to_torch(backbone: Backbone) -> None:
    module = SingularValues().eval()
    torch.testing.assert_close(Front(module, backbone, fabric())(VIEWS), of_torch(module, backbone))


@pytest.fixture
def thread_count() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
