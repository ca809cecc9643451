"""The frozen part of a network. On a processor OpenVINO runs it in float32, in two thirds of the time that torch takes
in bfloat16, which is further from what the exported graph will compute as well."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from training.backbones import Backbone
from training.compiled_module import TOLERANCE, CompiledModule, difference

logger = logging.getLogger(__name__)

#: What was compiled last, by what it is a part of, its size and its threads: each fold of a cross-validation has the
#: same front, and to compile it takes half a second or more.
_last: dict[tuple[object, ...], CompiledModule] = {}


class Front:
    """float32 [N, 3, S, S] in 0..255 -> what `module` makes of it normalised, on the trainer's device and in its
    precision. With no module to run, images are normalised only.

    What OpenVINO cannot convert, or computes otherwise than torch, is left to torch, as is all that runs on a GPU.
    """

    def __init__(self, module: nn.Module, backbone: Backbone, fabric: Any) -> None:
        self._module, self._fabric = module.to(fabric.device), fabric
        parameters = sum(each.numel() for each in module.parameters())
        self._part_of = (backbone.name, backbone.weights_sha256, backbone.seed, parameters)
        self._mean, self._std = (
            torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (backbone.mean, backbone.std)
        )
        self.empty = not any(True for _ in module.parameters())
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._compiled: dict[int, CompiledModule | None] = {}

    def compile(self, size: int) -> None:
        """Get ready for images of that size: half a second that should not count as their time."""
        if not self.empty and self._fabric.device.type == "cpu" and size not in self._compiled:
            self._compiled[size] = self._compile(size)

    def __call__(self, views: Tensor) -> Tensor:
        images = ((views - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        if self.empty:
            return torch.as_tensor(self._fabric.to_device(images))
        self.compile(views.shape[-1])
        compiled = self._compiled.get(views.shape[-1])
        with torch.no_grad(), self._fabric.autocast():
            if compiled is None:
                return torch.as_tensor(self._module(self._fabric.to_device(images)))
            half = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if half else torch.float32
        parts = [images[start :: self._threads].contiguous().numpy() for start in range(self._threads)]
        found = list(self._pool.map(compiled, parts))
        seen = torch.empty(len(views), *found[0].shape[1:], dtype=dtype)
        for start, part in enumerate(found):
            seen[start :: self._threads] = torch.from_numpy(part)
        return seen

    def _compile(self, size: int) -> CompiledModule | None:
        example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        key = (*self._part_of, size, self._threads)
        known = _last.get(key)
        if known is not None and self._difference(known, example) <= TOLERANCE:
            return known
        _last.clear()  # before another one needs memory
        try:
            compiled = CompiledModule(self._module, example, threads=self._threads)
            worst = self._difference(compiled, example)
        except Exception as error:  # noqa: BLE001 - tracing, export and compilation each raise their own kinds
            logger.info("the frozen part is run by torch, which is slower: OpenVINO cannot take it (%s)", error)
            return None
        if not worst <= TOLERANCE:
            logger.info("the frozen part is run by torch, which is slower: OpenVINO is off by %.2g", worst)
            return None
        _last[key] = compiled
        return compiled

    def _difference(self, compiled: CompiledModule, example: Tensor) -> float:
        with torch.inference_mode():
            return difference(self._module(example).numpy(), compiled(example.numpy()))
