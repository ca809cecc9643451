"""Several processes that work on one training, as `torchrun` starts them: the first leads, the others follow.

The leader runs the whole command as if it were alone: it reads, decides, measures time, writes and prints. When it
comes to the part that is worth sharing it sends the others a job, and all of them do that together. So nothing but the
job must be the same everywhere: no clock, no file, no kind of processor can make two processes decide differently.

Messages between them are pickled, as torch's are; they come from the leader of the same `torchrun` and nowhere else.

A command that may lead asks here before it does anything, so torch is imported only where there are several processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

_LONGEST: Final = timedelta(days=7)  # that followers wait for work: the leader may have much to do alone
_FAILED: Final = "perennial/failed"
_LEADER_FIRST: Final = 1.0  # seconds in which the leader may tell an error that all of them have


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those of the training: of all, and of those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    machine: int = 0

    @property
    def machines(self) -> int:
        return self.world // self.local_world


def place() -> Place:
    """As torchrun's variables say; without it, the only one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    return Place(*(int(os.environ[name]) for name in names))


class _Group:
    """The connection; one a process."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        here = place()
        self.store, _, _ = next(rendezvous("env://", here.rank, here.world, timeout=_LONGEST))
        # Messages and barriers go through gloo; gradients on a GPU through NCCL.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=self.store, rank=here.rank, world_size=here.world, timeout=_LONGEST)
        self.together = False  # all of them are doing a job

    def first_to_fail(self) -> bool:
        """Whether to tell: an error of one ends all, and most would only say that another is gone."""
        return bool(self.store.add(_FAILED, 1) == 1)

    def close(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


_group: _Group | None = None


def joined() -> bool:
    """Is this process one of several that are connected?"""
    return _group is not None


@contextmanager
def leading() -> Iterator[None]:
    """The others follow meanwhile, and end with it. Without torchrun, and in a process that leads already, nothing.

    Raises:
        SystemExit: a follower has failed, and has said why.
    """
    global _group
    if place().world == 1 or _group is not None:
        yield
        return
    _group = group = _Group()
    try:
        yield
    except BaseException as error:
        told = group.first_to_fail() or isinstance(error, SystemExit)
        if not told:
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise
    finally:
        _group = None
        if not group.together:
            with suppress(RuntimeError):  # a follower that is gone needs no word
                _send(None)
            group.close()
        # Else they are waiting for this one in the midst of a job: they end when its connection does.


def follow(work: Callable[[Any], object]) -> None:
    """Do every job that the leader sends, until it ends.

    Raises:
        Exception: what went wrong in `work`, unless another process has said it already.
    """
    global _group
    # Nothing here needs an orderly end, and a wait in another process's favour hears no other.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader gets it too, and says so
    _group = group = _Group()
    try:
        while (job := broadcast(None)) is not None:
            work(job)
    except Exception:
        time.sleep(_LEADER_FIRST)
        if group.first_to_fail():
            raise
        sys.exit(0)
    finally:
        _group = None
    group.close()


@contextmanager
def sending(job: Any) -> Iterator[None]:
    """The followers begin `job`; what is inside is this process's part of it."""
    if _group is None or place().rank:  # a follower has it already
        yield
        return
    _group.together = True
    _send(job)
    yield
    _group.together = False


def broadcast(value: Any) -> Any:
    """The leader's value, in every process."""
    if _group is None:
        return value
    return _send(value)


def _send(value: Any) -> Any:
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def said_here(value: str | None) -> str:
    """What the first process of this machine says."""
    assert _group is not None
    here = place()
    key = f"perennial/machine-{here.machine}"
    if value is not None:
        _group.store.set(key, value)
    return str(_group.store.get(key).decode())


def wait_for_all() -> None:
    """A barrier."""
    if _group is not None:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.zeros(1))
