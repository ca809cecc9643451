"""BatchNorm over a whole batch of which each process has a share: one process would give the same.

torch's SyncBatchNorm does that on a GPU only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training import processes
from training.align import batch_norms


class Sharing:
    """`on`: each process has a share of the batch; not so where all of them have all of it."""

    on = True


@contextmanager
def over_all_processes(network: nn.Module) -> Iterator[Sharing]:
    """While they learn, its BatchNorm layers take mean and variance over what all processes see."""
    sharing = Sharing()
    layers = list(batch_norms(network)) if processes.joined() else []
    for layer in layers:
        layer.forward = partial(_normalised, layer, sharing)
    try:
        yield sharing
    finally:
        for layer in layers:
            del layer.forward


def _normalised(layer: Any, sharing: Sharing, images: Tensor) -> Tensor:
    if not layer.training or not sharing.on:
        return torch.as_tensor(type(layer).forward(layer, images))
    seen = images.float()
    axes = [0, *range(2, seen.ndim)]
    mean, variance, count = _over_all(seen.mean(axes), seen.var(axes, unbiased=False), seen.numel() / seen.shape[1])
    with torch.no_grad():
        layer.num_batches_tracked += 1
        share = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean, share)
        layer.running_var.lerp_(variance * (count / (count - 1)), share)
    shape = [1, -1] + [1] * (seen.ndim - 2)
    scaled: Tensor = (seen - mean.view(shape)) * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        scaled = scaled * layer.weight.view(shape) + layer.bias.view(shape)
    return scaled.to(images.dtype)


def _over_all(mean: Tensor, variance: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of all, from those of each share (Chan et al., 1979), and how many numbers they are of."""
    here = processes.place()
    mine = torch.cat([mean, variance, mean.new_tensor([count])])
    nothing = torch.zeros_like(mine)
    every = summed(torch.stack([mine if rank == here.rank else nothing for rank in range(here.world)]))
    means, variances, counts = every[:, : len(mean)], every[:, len(mean) : -1], every[:, -1:]
    total = counts.sum()
    whole = (counts * means).sum(0) / total
    return whole, (counts * (variances + (means - whole).square())).sum(0) / total, total


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, through which gradients flow back."""
    return value if not processes.joined() else torch.as_tensor(_Sum.apply(value))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
