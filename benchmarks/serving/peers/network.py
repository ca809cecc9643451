"""The bundle's classifier for the peers: as a torch module with torchvision's own parts, and as a plain ONNX graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only some of the peers import torch
    from PIL import Image
    from torch import Tensor, nn

BUNDLE = Path(os.environ.get("BENCH_BUNDLE", ""))


def torch_network() -> tuple[nn.Module, Callable[[Image.Image], Tensor], tuple[str, ...]]:
    """torchvision's MobileNetV3-small with the bundle's weights and head, its transforms, and the class names."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    from torchvision.transforms import v2

    from perennial.bundle import open_bundle
    from training.pretrain import MEAN, STD

    bundle = open_bundle(BUNDLE)
    state = load_file(bundle.weights)
    network = torchvision.models.mobilenet_v3_small(weights=None)
    network.classifier = torch.nn.Linear(state["head.weight"].shape[1], state["head.weight"].shape[0])
    network.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
        | {"classifier.weight": state["head.weight"], "classifier.bias": state["head.bias"]}
    )
    rule = bundle.manifest.input
    transform = v2.Compose(
        [
            v2.Resize(rule.resize),
            v2.CenterCrop(rule.crop),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return network.eval(), transform, bundle.manifest.classes


def write_onnx(bundle: Path, path: Path) -> None:
    """The bundle's graph without what only Perennial needs: pixels -> probabilities."""
    import onnx.utils

    from perennial.bundle import open_bundle
    from perennial.graph import INPUT, OUTPUTS

    onnx.utils.extract_model(str(open_bundle(bundle).graph), str(path), [INPUT], [OUTPUTS[0]])
