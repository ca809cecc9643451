"""How the C library keeps memory that large arrays leave behind."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

# Of <malloc.h>.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees. A training step makes the same large arrays over and over: giving
    each back to the system and asking for it again cost a third of a step, in page faults. Only glibc needs it; with
    another C library nothing is done."""
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
