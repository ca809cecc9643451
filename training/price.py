"""What an answer of a model costs: parameters and multiply-adds an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.backbones import Backbone
from training.stand_ins import stand_in

# Where Triton is installed, it is imported for the name of a type: half a second, and a second more of every end.
with stand_in("triton.runtime.jit", JITFunction=type("JITFunction", (), {})):
    from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True)
class Price:
    """Of one image."""

    parameters: int
    multiply_adds: int


def of_network(backbone: Backbone, classes: int) -> Price:
    """The backbone with a linear head."""
    size = backbone.rule.crop
    with _Counter() as counter, torch.no_grad():
        backbone.network(torch.zeros(1, 3, size, size))
    own = sum(value.numel() for value in backbone.network.parameters())
    head = backbone.width * classes
    return Price(own + head + classes, counter.operations // 2 + head)


def of_linear(width: int, classes: int) -> Price:
    """A linear model on `width` numbers."""
    return Price((width + 1) * classes, width * classes)


def plus_neighbours(price: Price, rows: int, width: int, classes: int) -> Price:
    """The same network with `rows` kept examples to compare with in place of its head."""
    head = width * classes
    return Price(price.parameters - head - classes + rows * width, price.multiply_adds - head + rows * width)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Torch's own count of operations (`torch.utils.flop_counter`), without its compiler, which `FlopCounterMode`
    imports: with SymPy and 800 other modules that takes a second of every training."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=found)
        return found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled; True, the default, imports the compiler to tell it so
