"""What is known of every backbone before any is built: from the metadata of torchvision's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training import backbones
from training.backbone_ranking import at_hand


@dataclass(frozen=True, slots=True)
class Entry:
    """A backbone, and the weights that `default` takes for it, as torchvision publishes them.

    `parameters` is their number with the ImageNet classifier; `gflops` counts billions of multiply-adds an image, as
    torchvision does; `input_size` is the side of the square it sees, in pixels; `top1` the accuracy on ImageNet-1K, in
    percent; `megabytes` the size of the file. `license` is the address of its terms where torchvision names any.
    `at_hand` lists what `--weights` can be given without a download.
    """

    name: str
    parameters: int
    gflops: float
    input_size: int
    top1: float
    megabytes: float
    edition: str
    license: str | None
    url: str
    at_hand: tuple[str, ...]


def entries(folder: Path | None = None) -> tuple[Entry, ...]:
    """Every classification network of torchvision, by name. No network is built, nothing is downloaded.

    Args:
        folder: where else weights may lie: see `training.backbone_ranking.at_hand`.

    Raises:
        InvalidParameter: `folder` is no folder.
    """
    found: dict[str, list[str]] = {}
    for name, weights in at_hand(folder):
        found.setdefault(name, []).append(weights)
    return tuple(_entry(name, tuple(found.get(name, ()))) for name in backbones.names())


def _entry(name: str, at_hand: tuple[str, ...]) -> Entry:
    weights = backbones.published(name)
    meta = weights.meta
    return Entry(
        name=name,
        parameters=meta["num_params"],
        gflops=meta["_ops"],
        input_size=weights.transforms().crop_size[0],
        top1=meta["_metrics"]["ImageNet-1K"]["acc@1"],
        megabytes=meta["_file_size"],
        edition=weights.name,
        license=meta.get("license"),
        url=weights.url,
        at_hand=at_hand,
    )
