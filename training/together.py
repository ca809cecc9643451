"""Fine-tuning by as many processes as there are: what the leader sends, and what the others do with it."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from perennial.errors import InvalidSettings
from perennial.graph import BFLOAT16, available_precisions
from perennial.images import Pixels
from perennial.progress import Progress, silent
from training import processes
from training.allocator import keep_freed_memory
from training.backbones import Backbone
from training.epochs import Checkpoint
from training.finetune import Finetuned, Images, Record, Shelf, finetune, unrecorded
from training.pixels import new_file
from training.probe import Probe
from training.recipes import Recipe
from training.selection import Indexes

_IN_A_MESSAGE: Final = 2**26  # bytes of pixels
_GPUS: Final = "start at most as many processes a machine as it has GPUs (torchrun --nproc-per-node), or set it to cpu"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What networks are trained on, in Lightning Fabric's words."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"

    def settled(self) -> Hardware:
        """With what `auto` comes to on this machine: CUDA where there is any, bfloat16 where it is fast.

        Raises:
            InvalidSettings: there are fewer GPUs than processes that would need one.
        """
        accelerator, precision = self.accelerator, self.precision
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if accelerator == "auto":
            accelerator = "cuda" if gpus else "cpu"
        if accelerator == "cuda" and gpus < processes.place().local_world:
            raise InvalidSettings(f"train.accelerator is cuda, and this machine has {gpus} GPUs: {_GPUS}")
        if precision == "auto":
            if accelerator == "cuda":
                half = torch.cuda.is_bf16_supported(including_emulation=False)
            else:
                half = BFLOAT16 in available_precisions("openvino")
            precision = "bf16-mixed" if half else "32-true"
        return Hardware(accelerator, precision)


ANY: Final = Hardware()


@dataclass(frozen=True, slots=True)
class Job:
    """One training, for every process that takes part. `pixels` is a NumPy file, uint8 [P, S, S, 3]; `at` [N] says
    which of them each image has, `pool` [M] (in order) which ones trainings like this one will learn from, for those to
    share what they compute once. `hardware` is settled, `threads` are those of one machine."""

    backbone: Backbone
    start: Probe | None
    pixels: Path
    at: Indexes
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    recipe: Recipe
    classes: int
    seed: int
    stage: str
    scratch: Path
    hardware: Hardware
    threads: int
    pool: Indexes | None = None


class Workplace:
    """What a process keeps between the trainings it takes part in: the trainer, and the pixels."""

    def __init__(self) -> None:
        self._fabrics: dict[Hardware, Any] = {}
        self._pixels: dict[Path, Pixels] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shelf: tuple[Path, Shelf] | None = None

    def train(
        self,
        job: Job,
        judged: Images | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Progress = silent,
        record: Record = unrecorded,
    ) -> Finetuned:
        """Do it together with the followers, if there are any. Judged rows and a checkpoint are the leader's.

        Raises:
            InvalidParameter: this network cannot be trained in part.
        """
        with processes.sending(job):
            fabric = self.trainer(job.hardware)
            train = Images(self._of(job.pixels), job.labels, job.weights, job.at)
            local = processes.place().local_world if processes.joined() else 1
            processes.wait_for_all()  # what follows is timed
            with _threads(max(1, job.threads // local)), warnings.catch_warnings():
                # Said of 1 x 1 convolutions, whose weights lie the same either way.
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
                return finetune(
                    job.backbone, job.start, train, train.none() if judged is None else judged, job.recipe,
                    classes=job.classes, seed=job.seed, fabric=fabric, shelf=self._shelf_of(job), stage=job.stage,
                    checkpoint=checkpoint, progress=progress, record=record,
                )  # fmt: skip

    def trainer(self, hardware: Hardware) -> Any:
        """A launched Fabric."""
        if hardware not in self._fabrics:
            from lightning_fabric import Fabric

            logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
            here = processes.place() if processes.joined() else processes.Place()
            fabric = Fabric(
                accelerator=hardware.accelerator,
                devices=here.local_world,
                num_nodes=here.machines,
                strategy="ddp" if here.world > 1 else "auto",
                precision=cast(Any, hardware.precision),
            )
            fabric.launch()
            if hardware.accelerator == "cpu":
                keep_freed_memory()
            self._fabrics[hardware] = fabric
        return self._fabrics[hardware]

    # --- what lies on the disk of each machine ---

    def _shelf_of(self, job: Job) -> Shelf:
        folder = self._scratch(job)
        if job.pool is None:
            return Shelf(folder)
        if self._shelf is None or self._shelf[0] != job.pixels:
            pool = Images(self._of(job.pixels), np.zeros(len(job.pool), np.int64), np.ones(len(job.pool)), job.pool)
            self._shelf = (job.pixels, Shelf(folder, pool))
        return self._shelf[1]

    def _scratch(self, job: Job) -> Path:
        return job.scratch if processes.place().machine == 0 or not processes.joined() else self._own_folder()

    def _own_folder(self) -> Path:
        """One for all processes of this machine, where the leader's disk is not at hand."""
        here = processes.place()
        if here.local_rank == 0 and self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="perennial-")
        return Path(processes.said_here(self._folder.name if self._folder else None))

    def _of(self, path: Path) -> Pixels:
        if path not in self._pixels:
            self._pixels = {path: self._received(path) if processes.joined() else np.load(path, mmap_mode="r")}
        return self._pixels[path]

    def _received(self, path: Path) -> Pixels:
        here = processes.place()
        pixels = np.load(path, mmap_mode="r") if here.machine == 0 else None
        if here.machines == 1:
            return _there(pixels)
        shape = processes.broadcast(None if pixels is None else pixels.shape)
        own = path if here.machine == 0 else self._own_folder() / f"{path.parent.name}.npy"
        writes = here.machine > 0 and here.local_rank == 0
        copy = new_file(own, shape) if writes else None
        many = max(1, _IN_A_MESSAGE // int(np.prod(shape[1:])))
        for start in range(0, shape[0], many):
            block = torch.empty(min(many, shape[0] - start), *shape[1:], dtype=torch.uint8)
            if here.rank == 0:
                block.numpy()[...] = _there(pixels)[start : start + many]
            dist.broadcast(block, 0)
            if copy is not None:
                copy[start : start + many] = block.numpy()
        processes.wait_for_all()
        return _there(pixels) if here.machine == 0 else np.load(own, mmap_mode="r")


def follow() -> None:
    """In a process that `torchrun` started beside the leader: take part in every training until the leader ends."""
    import lightning_fabric  # noqa: F401 - takes a second or two, of which the leader's first training would have to wait

    processes.follow(Workplace().train)


def _there(pixels: Pixels | None) -> Pixels:
    assert pixels is not None
    return pixels


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Training has one batch at a time: here, threads belong inside the operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
