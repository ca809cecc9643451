"""Any torchvision classification network as a feature extractor, with pretrained weights that are never a surprise.

Weights are `default` (torchvision's own, downloaded by torchvision), `builtin` (shipped with Perennial), `none`
(random, on purpose) or a local file. Every feature weight must be there; only the classifier may differ.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.hub import get_dir

from perennial.errors import InvalidParameter, WeightsChanged, WeightsUnavailable
from perennial.images import InputRule
from perennial.storage import sha256_of_file
from training.lean_torchvision import torchvision
from training.stages import Stage, split, stages

__all__ = [
    "Backbone", "Stage", "at_hand", "downloaded", "load", "load_with_head", "names", "normalised", "published", "split",
    "stages",
]  # fmt: skip

_HEADS: Final = ("fc", "classifier", "head", "heads")  # torchvision's names for the last layers
_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")  # side classifiers that only act in training
_TRANSFORMING: Final = ("googlenet", "inception_v3")
_DOWNLOAD_SECONDS: Final = 30.0
# Checkpoints of densenet older than torch 0.4 write `norm.1` for `norm1`; torchvision still publishes those.
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen feature extractor.

    `network` maps normalised images [N, 3, H, W] to pooled features [N, `width`]; `mean` and `std` normalise pixels in
    0..1; `weights_sha256` is the digest of the weights file, empty for `none`; `source` is what `weights` said.
    """

    name: str
    network: nn.Module
    width: int
    rule: InputRule
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    weights_sha256: str
    seed: int


def load(
    name: str, weights: str, *, image_size: int = 0, seed: int = 0, expected_sha256: str | None = None
) -> Backbone:
    """Build a backbone in eval mode, its classifier replaced by the identity.

    Args:
        weights: `default`, `builtin`, `none`, or the path of a `.pth` or `.safetensors` file.
        image_size: side of the square the network sees, in pixels; 0 takes the weights' own.
        seed: of the random weights, for `none`.
        expected_sha256: what the weights file must be, byte for byte.

    Raises:
        InvalidParameter: torchvision has no such network, or it cannot see images of that size.
        WeightsUnavailable: the weights cannot be had or do not fit.
        WeightsChanged: the file is not the expected one.
    """
    backbone, _ = _load(name, weights, image_size, seed, expected_sha256, whole=False)
    return backbone


def load_with_head(name: str, weights: str, *, image_size: int = 0) -> tuple[Backbone, nn.Module]:
    """Build a backbone and the classifier it was pretrained with: head(network(images)) are its own logits [N, 1000].

    SqueezeNet pools after it has classified; its features here are its 1,000 scores, and its head does nothing.

    Args:
        weights: `default` or the path of a file that holds the whole network.

    Raises:
        InvalidParameter: torchvision has no such network, it cannot see images of that size, or these weights have no
            classifier.
        WeightsUnavailable: the weights cannot be had or do not fit.
    """
    if weights in ("builtin", "none"):
        raise InvalidParameter(
            f"the weights {weights!r} hold no ImageNet classifier; take default, or the path of a whole state_dict"
        )
    return _load(name, weights, image_size, 0, None, whole=True)


def _load(
    name: str, weights: str, image_size: int, seed: int, expected_sha256: str | None, *, whole: bool
) -> tuple[Backbone, nn.Module]:
    if name not in names():
        raise InvalidParameter(f"torchvision has no classification network {name!r}; it has: {', '.join(names())}")
    path = _weights_path(name, weights, whole)
    digest = "" if path is None else sha256_of_file(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise WeightsChanged(
            f"{path or 'none'} has sha256 {digest or '(none)'}, but {expected_sha256 or 'random weights'} was asked "
            "for; put the original file back, or train anew from these weights with `perennial train`"
        )
    state, metadata = ({}, {}) if path is None else _read(path)
    rule, mean, std = _preprocessing(name, metadata if "input_size" in metadata else {}, image_size)
    network = _build(name, seed, rule.crop)
    if whole and path is not None:
        _fill(network, state, path, name, ignored=_AUXILIARY)
    head = _take_head(network, name, keep_squeezenets=whole)
    if path is not None:
        if not whole:
            _fill(network, state, path, f"the features of {name}", ignored=(*_AUXILIARY, *_head_prefixes()))
        # Networks ported from TensorFlow normalise once more, inside, when their weights are the published ones.
        if name in _TRANSFORMING:
            network.transform_input = True
    network.eval().requires_grad_(False)
    head.eval().requires_grad_(False)
    width = _width(network, name, rule.crop)
    return Backbone(name, network, width, rule, mean, std, weights, digest, seed), head


def normalised(pixels: Tensor, backbone: Backbone) -> Tensor:
    """uint8 pixels [N, H, W, 3] -> the network's input, float32 [N, 3, H, W]."""
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    mean = torch.tensor(backbone.mean).view(1, 3, 1, 1)
    std = torch.tensor(backbone.std).view(1, 3, 1, 1)
    return (images - mean) / std


# --- the network -----------------------------------------------------------------------------------------


def names() -> list[str]:
    """Every classification network of torchvision."""
    return list(torchvision.models.list_models(module=torchvision.models))


def _build(name: str, seed: int, size: int) -> Any:
    options: dict[str, Any] = {}
    if name in _TRANSFORMING:
        options = {"init_weights": True, "aux_logits": name == "inception_v3"}
    elif name.startswith("vit_"):
        options = {"image_size": size}  # its position embeddings are made for one size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torchvision.models.get_model(name, weights=None, **options)
    if name == "inception_v3":
        network.aux_logits, network.AuxLogits = False, None
    return network


def _take_head(network: Any, name: str, *, keep_squeezenets: bool) -> nn.Module:
    """Take the classifier away, so that the output is a pooled feature vector [N, D]. Returns what was taken."""
    attribute = next((head for head in _HEADS if isinstance(getattr(network, head, None), nn.Module)), None)
    if attribute is None:
        raise InvalidParameter(f"{name} has none of the heads {', '.join(_HEADS)}; choose another backbone")
    head: nn.Module = getattr(network, attribute)
    if isinstance(network, torchvision.models.SqueezeNet):  # classifies by convolution, then pools
        if not keep_squeezenets:
            setattr(network, attribute, nn.AdaptiveAvgPool2d(1))
        return nn.Identity()
    if isinstance(head, nn.Linear) or isinstance(network, torchvision.models.MobileNetV3):
        # MobileNetV3's hidden layer is part of its classifier: trained for the old classes, absent from checkpoints
        # that hold features only.
        setattr(network, attribute, nn.Identity())
        return head
    last = next((key for key, layer in reversed(list(head.named_children())) if isinstance(layer, nn.Linear)), None)
    if last is None:
        raise InvalidParameter(f"the head of {name} has no linear layer to replace; choose another backbone")
    taken = head.get_submodule(last)
    setattr(head, last, nn.Identity())
    return taken


def _width(network: nn.Module, name: str, size: int) -> int:
    try:
        with torch.inference_mode():
            features = network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InvalidParameter(f"{name} cannot see {size} x {size} pixels ({error}); leave out --image-size") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise InvalidParameter(f"{name} gives no feature vector; choose another backbone")
    return int(features.shape[1])


# --- its weights -----------------------------------------------------------------------------------------


def _weights_path(name: str, weights: str, whole: bool) -> Path | None:
    if weights == "none":
        return None
    if weights == "builtin":
        from training.pretrain import builtin_checkpoint

        return builtin_checkpoint(name)
    if weights == "default":
        return _download(name, whole)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsUnavailable(f"there is no weights file {path}; --weights takes default, builtin, none or a path")
    return path


def at_hand(name: str, weights: str) -> Path | None:
    """The file that `weights` means; None for `none`. What torchvision would download may not be there yet.

    Raises:
        WeightsUnavailable: there is no such file.
    """
    return downloaded(name) if weights == "default" else _weights_path(name, weights, whole=False)


def published(name: str) -> Any:
    """The edition of torchvision's weights that `default` takes: `url`, `meta`, `transforms`."""
    # The second edition of the ImageNet weights has better accuracy and worse features (pytorch/vision#8382).
    weights = torchvision.models.get_model_weights(name)
    return getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)


def _download(name: str, whole: bool) -> Path:
    chosen = published(name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SECONDS)  # torchvision sets none: a dead network would hang for ever
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch says there what it downloads; stdout is for results
            chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no route, a proxy's answer, a full disk, a digest that differs: all mean the same
        others = f"; or use --weights builtin{_builtin_hint(name)}; or --weights none for random weights, on purpose"
        raise WeightsUnavailable(
            f"torchvision could not download {chosen.url} ({error}). Fetch that file on a machine that can and give "
            f"it with --weights PATH{'' if whole else others}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return downloaded(name)


def downloaded(name: str) -> Path:
    """Where torchvision keeps, or would keep, the published weights of a network on this machine."""
    return Path(get_dir(), "checkpoints", published(name).url.rsplit("/", 1)[-1])


def _builtin_hint(name: str) -> str:
    from training.pretrain import BACKBONES

    return "" if name in BACKBONES else f" with --backbone {' or '.join(BACKBONES)}"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata. Pickled code is never run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in list(file.keys())}, file.metadata() or {}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a broken or unsafe pickle raises nearly anything
        raise WeightsUnavailable(
            f"{path} is not a file of plain weights ({type(error).__name__}); save it with "
            "torch.save(model.state_dict(), path), or as .safetensors"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsUnavailable(f"{path} does not hold a state_dict: names and their tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}, {}


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str, *, ignored: tuple[str, ...]) -> None:
    given = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    own = network.state_dict()
    # How many batches BatchNorm has seen plays no part in inference; old and compact checkpoints leave it out.
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own and not key.startswith(ignored)]
    shapes = [key for key in own if key in given and own[key].shape != given[key].shape]
    problems = [
        f"{len(keys)} {problem} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise WeightsUnavailable(f"{path} does not fit {what}: {'; '.join(problems)}")
    network.load_state_dict({key: value.float() for key, value in given.items() if key in own}, strict=False)


def _head_prefixes() -> tuple[str, ...]:
    return tuple(f"{head}." for head in _HEADS)


# --- what it expects to see ------------------------------------------------------------------------------


def _preprocessing(
    name: str, metadata: Mapping[str, str], image_size: int
) -> tuple[InputRule, tuple[float, float, float], tuple[float, float, float]]:
    if metadata:
        crop = int(metadata["input_size"])
        resize = int(metadata.get("resize", crop))
        mean, std = json.loads(metadata["mean"]), json.loads(metadata["std"])
    else:
        transforms = published(name).transforms()
        crop, resize = transforms.crop_size[0], transforms.resize_size[0]
        mean, std = transforms.mean, transforms.std
    if image_size:
        crop, resize = image_size, max(image_size, round(resize * image_size / crop))
    return InputRule(resize=int(resize), crop=int(crop)), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
