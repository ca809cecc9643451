"""What glibc does with memory that was freed. Another C library is left alone."""

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
    each back to the system and asking for it again cost a third of a step, in page faults."""
    if _is_glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """What many threads have freed and the library keeps for them: after a look at 100,000 small images 200 MB."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
