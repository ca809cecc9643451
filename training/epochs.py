"""A training run's state after each epoch, so that one that was interrupted goes on exactly where it was."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perennial.bundle import CurvePoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a run goes on: how many epochs are done, how they went, and the seconds they took."""

    epoch: int
    curve: tuple[CurvePoint, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint's content."""

    tensors: dict[str, Tensor]
    done: Resumed


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds the state of the run that `run` (a digest of all it depends on) stands for."""

    path: Path
    run: str

    def save(self, model: nn.Module, optimizer: Any, averaged: list[Tensor], done: Resumed) -> None:
        """Written under a temporary name and renamed: whole or not at all."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"averaged.{at}": value for at, value in enumerate(averaged)}
        for at, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{at}.{name}": torch.as_tensor(value) for name, value in state.items()}
        metadata = {
            "run": self.run,
            "epoch": str(done.epoch),
            "curve": json.dumps([point.model_dump() for point in done.curve]),
            "seconds": repr(done.seconds),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial, metadata
        )
        os.replace(partial, self.path)

    def read(self) -> Saved | None:
        """The state that was saved for this very run; of another run, or a damaged file, nothing is used."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("run") != self.run:
                    return None
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError) as error:
            logger.warning("the checkpoint %s cannot be read (%s); training starts anew", self.path, error)
            return None
        curve = tuple(CurvePoint.model_validate(point) for point in json.loads(metadata["curve"]))
        return Saved(tensors, Resumed(int(metadata["epoch"]), curve, float(metadata["seconds"])))

    def remove(self) -> None:
        """The run has ended."""
        self.path.unlink(missing_ok=True)


def restore(saved: Saved | None, model: nn.Module, optimizer: Any, averaged: list[Tensor]) -> Resumed:
    """Put the state back, and say where to go on."""
    if saved is None:
        return Resumed(0, (), 0.0)
    tensors = saved.tensors
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    with torch.no_grad():
        for at, value in enumerate(averaged):
            value.copy_(tensors[f"averaged.{at}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, at_parameter, key = name.split(".", 2)
            state.setdefault(int(at_parameter), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return saved.done
