"""A network cut into ordered stages, for fine-tuning its last ones, and for running it from a boundary on.

Each family of torchvision's networks is a chain: what one step gives the next one takes. The chain is written out
here, because `forward` holds steps that are no modules; stages are runs of it that begin where the image shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from perennial.errors import InvalidParameter
from training.lean_torchvision import torchvision

if TYPE_CHECKING:
    from training.backbones import Backbone

models: Final[Any] = torchvision.models
_GROUPS: Final = 4  # of a vision transformer's equal layers


@dataclass(frozen=True, slots=True)
class Stage:
    """A few consecutive steps of a network. `name` is the first of its modules that has weights, as `network` calls it;
    one module of `modules` after the other computes the stage."""

    name: str
    modules: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all its modules, which are the network's own."""
        for module in self.modules:
            yield from module.parameters()


class _Call(nn.Module):
    """A step that has no weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, images: Tensor) -> Tensor:
        return self._function(images)


class _Patches(nn.Module):
    """A vision transformer's way in: patches, the class token and the positions. The weights are the network's own."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return torch.as_tensor(self.dropout(tokens + self.pos_embedding))


def stages(backbone: Backbone) -> tuple[Stage, ...]:
    """The backbone's stages from input to output, four to eight of them; every parameter belongs to exactly one.

    Raises:
        InvalidParameter: the order of this network's steps is not known.
    """
    runs: list[list[tuple[str, nn.Module]]] = [[]]
    for name, module, begins in _chain(backbone):
        if begins and _has_weights(runs[-1]):
            runs.append([])
        runs[-1].append((name, module))
    if not _has_weights(runs[-1]):
        tail = runs.pop()
        runs[-1] += tail
    return tuple(
        Stage(
            next(name for name, module in run if any(True for _ in module.parameters())),
            tuple(module for _, module in run),
        )
        for run in runs
    )


def split(backbone: Backbone, stage_index: int) -> tuple[nn.Module, nn.Module]:
    """The network as (front, back), cut before the stage of that index: back(front(x)) is network(x), bit for bit.

    Both are made of the network's own modules: to train the back is to train the network. With 0 the front does
    nothing, with the number of stages the back.

    Raises:
        InvalidParameter: there is no such stage, or the order of this network's steps is not known.
    """
    found = stages(backbone)
    if not 0 <= stage_index <= len(found):
        raise InvalidParameter(
            f"{backbone.name} has {len(found)} stages; it cannot be split before stage {stage_index}"
        )
    front, back = found[:stage_index], found[stage_index:]
    return _joined(front, backbone), _joined(back, backbone)


def _joined(some: tuple[Stage, ...], backbone: Backbone) -> nn.Module:
    chain = nn.Sequential(*(module for stage in some for module in stage.modules))
    chain.training = backbone.network.training  # its modules keep the mode that they are in
    return chain


def _has_weights(run: list[tuple[str, nn.Module]]) -> bool:
    return any(True for _, module in run for _ in module.parameters())


# --- the chains ------------------------------------------------------------------------------------------

_STEPS: Final[dict[str, Callable[[], nn.Module]]] = {
    "(flatten)": lambda: nn.Flatten(1),
    "(pool)": lambda: nn.AdaptiveAvgPool2d(1),
    "(mean)": lambda: _Call(lambda images: images.mean([2, 3])),
    "(relu)": lambda: nn.ReLU(),
}

#: What `forward` of each family does, step by step: a module of the network, the children of one (`.*`), or a step
#: without weights (in parentheses).
_CHAINS: Final[tuple[tuple[Any, str], ...]] = (
    (models.AlexNet, "features.* avgpool (flatten) classifier"),
    (models.VGG, "features.* avgpool (flatten) classifier"),
    (models.ConvNeXt, "features.* avgpool classifier"),
    (models.DenseNet, "features.* (relu) (pool) (flatten) classifier"),
    (models.EfficientNet, "features.* avgpool (flatten) classifier"),
    (models.MNASNet, "layers.* (mean) classifier"),
    (models.MobileNetV2, "features.* (pool) (flatten) classifier"),
    (models.MobileNetV3, "features.* avgpool (flatten) classifier"),
    (models.SqueezeNet, "features.* classifier (flatten)"),
    (models.RegNet, "stem trunk_output.* avgpool (flatten) fc"),
    (models.ResNet, "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool (flatten) fc"),
    (models.ShuffleNetV2, "conv1 maxpool stage2 stage3 stage4 conv5 (mean) fc"),
    (models.MaxVit, "stem blocks.* classifier"),
    (models.SwinTransformer, "features.* norm permute avgpool flatten head"),
    (models.VisionTransformer, "(patches) encoder.layers.* encoder.ln (token) heads"),
    (
        models.GoogLeNet,
        "(transform) conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b "
        "inception4c inception4d inception4e maxpool4 inception5a inception5b avgpool (flatten) dropout fc",
    ),
    (
        models.Inception3,
        "(transform) Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 Mixed_5b "
        "Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c avgpool dropout "
        "(flatten) fc",
    ),
)


def _chain(backbone: Backbone) -> list[tuple[str, nn.Module, bool]]:
    """The steps of a network in order: name, module, and whether a stage may begin with it."""
    network: Any = backbone.network
    written = next((chain for family, chain in _CHAINS if isinstance(network, family)), None)
    if written is None:
        raise InvalidParameter(
            f"the order of {backbone.name}'s steps is not known, so it cannot be trained in part; use the linear probe "
            "or full fine-tuning, or choose another backbone"
        )
    steps: list[tuple[str, nn.Module, bool]] = []
    for word in written.split():
        if word == "(patches)":
            steps.append(("conv_proj", _Patches(network), True))
        elif word == "(token)":
            steps.append((word, _Call(lambda tokens: tokens[:, 0]), False))
        elif word == "(transform)":
            steps.append((word, _Call(network._transform_input), False))
        elif word in _STEPS:
            steps.append((word, _STEPS[word](), False))
        elif word.endswith(".*"):
            children = list(network.get_submodule(word[:-2]).named_children())
            equal = isinstance(network, models.VisionTransformer)
            for at, (name, module) in enumerate(children):
                begins = at * _GROUPS % len(children) < _GROUPS if equal else _shrinks(module)
                steps.append((f"{word[:-2]}.{name}", module, begins))
        else:
            module = network.get_submodule(word)
            steps.append((word, module, _shrinks(module)))
    return steps


def _shrinks(module: nn.Module) -> bool:
    """Does it make the image smaller, and so begin a stage?"""
    merging = (models.swin_transformer.PatchMerging, models.swin_transformer.PatchMergingV2)
    return any(isinstance(part, merging) or _stride(part) > 1 for part in module.modules())


def _stride(module: nn.Module) -> int:
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1
    return max(module.stride) if isinstance(module.stride, tuple) else int(module.stride)
