"""A training run's numbers as they come, in a file: CSV, or TensorBoard's format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from perennial.errors import InvalidSettings

if TYPE_CHECKING:
    from training.finetune import EpochDone

Kind = Literal["none", "csv", "tensorboard"]
#: (what it is of, such as "partial"; its numbers; the epoch)
Log = Callable[[str, Mapping[str, float], int], None]
_TENSORBOARD: Final = ("tensorboard", "tensorboardX")


@dataclass(frozen=True, slots=True)
class RunLog:
    """`folder` is where it is written; None where it is not."""

    write: Log
    folder: Path | None


def unlogged(of: str, numbers: Mapping[str, float], epoch: int) -> None:
    """Nobody keeps it."""


def log_epoch(log: Log, of: str, done: EpochDone) -> None:
    """An epoch of a network's training."""
    numbers = {name: value for name, value in asdict(done).items() if name != "epoch" and not math.isnan(value)}
    log(of, numbers, done.epoch)


@contextmanager
def opened(kind: Kind, root: Path, name: str) -> Iterator[RunLog]:
    """A new folder `root/name/TIME`, which gets `metrics.csv` or TensorBoard's event file.

    A column, or tag, is what it is of and the number's name: `partial/loss`. The step is the epoch.

    Raises:
        InvalidSettings: TensorBoard's format is asked for and no package that writes it is installed.
    """
    if kind == "none":
        yield RunLog(unlogged, None)
        return
    if kind == "tensorboard" and not any(find_spec(package) for package in _TENSORBOARD):
        raise InvalidSettings(
            "train.log is tensorboard, and the package that writes its format is not installed: "
            "pip install 'perennial[tensorboard]', or take csv"
        )
    from lightning_fabric.loggers.csv_logs import CSVLogger
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    logger: Any
    if kind == "csv":
        logger = CSVLogger(root, name=name, version=now, flush_logs_every_n_steps=1)
    else:
        logger = TensorBoardLogger(root, name=name, version=now)

    def write(of: str, numbers: Mapping[str, float], epoch: int) -> None:
        logger.log_metrics({f"{of}/{key}": float(value) for key, value in numbers.items()}, step=epoch)

    try:
        yield RunLog(write, Path(logger.log_dir))
    except BaseException:
        logger.finalize("failed")
        raise
    logger.finalize("success")
