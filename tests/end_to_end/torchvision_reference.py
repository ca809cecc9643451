"""What torch says of images decoded in full and transformed by torchvision: what a served label is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from perennial.bundle import open_bundle
from training import backbones
from training.export import ServedModel, Whitening
from training.probe import Probe


def labels_by_torch(bundle: Path, weights: Path, images: Sequence[Path]) -> list[str]:
    """The label of each image: full decode, `Resize` with antialiasing, `CenterCrop`, and the bundle's weights."""
    # Imported here, as they bring torch's compiler: seconds that tests without a reference need not wait for.
    from torchvision.transforms import v2
    from torchvision.transforms.v2.functional import pil_to_tensor

    opened = open_bundle(bundle)
    manifest = opened.manifest
    state = load_file(opened.weights)
    backbone = backbones.load(manifest.backbone, str(weights), image_size=manifest.input.crop)
    probe = Probe(
        state["head.weight"].numpy(), state["head.bias"].numpy(), penalty=1.0, losses={}, accuracy=1.0,
        root=bool(state["takes_roots"]),
    )  # fmt: skip
    whitening = Whitening(state["pca.weight"].numpy(), state["centre"].numpy())
    model = ServedModel(backbone, probe, manifest.temperature, whitening)
    model.load_state_dict(state)
    transform = v2.Compose([v2.Resize(manifest.input.resize, antialias=True), v2.CenterCrop(manifest.input.crop)])
    found = []
    with torch.inference_mode():
        for path in images:
            with Image.open(path) as image:
                pixels = transform(pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB")))
            probabilities = model(pixels.permute(1, 2, 0)[None])[0][0]
            found.append(manifest.classes[int(probabilities.argmax())])
    return found
