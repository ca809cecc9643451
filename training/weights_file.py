"""A network's features in a file that `--weights PATH` takes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import nn

from perennial.errors import PerennialError
from perennial.storage import sha256_of_file
from training.backbones import Backbone


def save_features(backbone: Backbone, out: Path, about: Mapping[str, str]) -> Backbone:
    """Write every weight and statistic of the network (safetensors, float32), whole or not at all.

    Args:
        about: how they came to be; goes into the file's metadata, beside the input that they are made for.

    Returns:
        the backbone as it will be loaded from there.

    Raises:
        PerennialError: a value is not finite, so training has diverged; nothing is written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.network.state_dict().items()}
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise PerennialError(
            f"training diverged: {broken[0]} and {len(broken) - 1} more are not finite; nothing was written. Try "
            "another seed or fewer epochs"
        )
    rule = backbone.rule
    metadata = {
        "format": "pt",
        "backbone": backbone.name,
        "input_size": str(rule.crop),
        "resize": str(rule.resize),
        "mean": json.dumps(backbone.mean),
        "std": json.dumps(backbone.std),
        **about,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(in_order(save(state, metadata)))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return replace(backbone, source=str(out), weights_sha256=sha256_of_file(out))


def digest_of(network: nn.Module) -> str:
    """sha256 over every weight and statistic: what is cached under another was computed with other weights."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def in_order(written: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes the metadata in any order."""
    length = int.from_bytes(written[:8], "little")
    header = json.dumps(json.loads(written[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + written[8 + length :]
