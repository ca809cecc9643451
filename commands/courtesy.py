"""Heavy work beside a service: it takes what the service leaves."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_AUTOGROUP: Final = Path("/proc/self/autogroup")
#: What the libraries of linear algebra read when they are imported.
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def give_way(niceness: int, threads: int) -> None:
    """Lower this process's claim on the processor, and cap the threads of the libraries it will import.

    For a process of its own, before it starts threads or imports such a library. A niceness that it was started with
    stays if it is higher, and thread variables that somebody set stay.

    Linux shares processors between sessions first (autogroups), and only within one by niceness: a process that leads
    its session, as one that `perennial watch` starts, would take half of them from a service of another session
    whatever its niceness. So it gives that to the whole session.
    """
    niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # there are no autogroups here: niceness alone counts
            _AUTOGROUP.write_text(str(niceness))
    for variable in _THREADS:
        os.environ.setdefault(variable, str(threads))
