from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from perennial.errors import InvalidParameter
from training import backbones
from training.backbones import Backbone
from training.stages import split, stages

#: A small member of each family with a chain of its own, and the pixels it is shown.
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 32, "inception_v3": 80,
    "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "resnet18": 32,
    "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "swin_t": 32, "swin_v2_t": 32, "vgg11": 32, "vit_b_32": 32,
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_each_family_can_be_cut_anywhere_and_computes_the_same(name: str, size: int) -> None:
    backbone = backbones.load(name, "none", image_size=size)
    found = stages(backbone)
    assert 4 <= len(found) <= 8
    held = [id(parameter) for stage in found for parameter in stage.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in backbone.network.parameters())
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = backbone.network(images)
        for index in range(len(found) + 1):
            front, back = split(backbone, index)
            activations = front(images)
            kept = activations.clone()
            assert torch.equal(back(activations), whole), index
            assert torch.equal(activations, kept), "cached activations must survive being used"


def test_published_inception_weights_normalise_in_front_of_every_cut() -> None:
    backbone = backbones.load("googlenet", "none", image_size=32)
    backbone.network.transform_input = True  # as with the published weights
    images = torch.rand(2, 3, 32, 32)
    front, back = split(backbone, 2)
    with torch.inference_mode():
        assert torch.equal(back(front(images)), backbone.network(images))


def test_to_train_the_back_is_to_train_the_network() -> None:
    backbone = backbones.load("resnet18", "none", image_size=32)
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    front, back = split(backbone, 4)
    for parameter in back.parameters():
        parameter.requires_grad_(True)
    images = torch.rand(2, 3, 32, 32)
    back(front(images)).square().mean().backward()
    torch.optim.SGD(back.parameters(), lr=0.1).step()
    changed = {name for name, value in backbone.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("layer4.") for name in changed)
    assert not any(module.training for module in backbone.network.modules())


def test_a_vision_transformers_token_and_positions_belong_to_its_first_stage() -> None:
    backbone = backbones.load("vit_b_32", "none", image_size=32)
    first, *rest = stages(backbone)
    network = backbone.network
    held = {id(parameter) for parameter in first.parameters()}
    assert held == {
        id(network.class_token), id(network.encoder.pos_embedding), *map(id, network.conv_proj.parameters())
    }  # fmt: skip
    assert [stage.name for stage in rest] == [f"encoder.layers.encoder_layer_{at}" for at in (0, 3, 6, 9)]


def test_a_stage_is_named_by_its_first_weights() -> None:
    names = [stage.name for stage in stages(backbones.load("resnet18", "none", image_size=32))]
    assert names == ["conv1", "layer1", "layer2", "layer3", "layer4"]


def test_a_cut_that_there_is_not_is_refused() -> None:
    backbone = backbones.load("resnet18", "none", image_size=32)
    for index in (-1, 6):
        with pytest.raises(InvalidParameter, match=f"resnet18 has 5 stages; .* before stage {index}"):
            split(backbone, index)


def test_a_network_of_unknown_order_is_refused_with_what_to_do() -> None:
    odd: Backbone = replace(backbones.load("resnet18", "none", image_size=32), network=nn.Flatten(), name="odd")
    with pytest.raises(InvalidParameter, match=r"order of odd's steps is not known.* use the linear probe"):
        stages(odd)
