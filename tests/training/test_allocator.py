from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")

_ARRAYS = 20
_PAGES = 40 * 2**20 // 4096  # of one array
_SCRIPT = """
import ctypes
import resource
import sys

import numpy as np

# Small pages, whatever the kernel's default: with huge ones the few small ones at both ends are most of the faults.
PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0

from training.allocator import give_back_freed_memory, keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({arrays}):
    np.empty(40 * 2**20, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
held = int(open("/proc/self/statm").read().split()[1])
give_back_freed_memory()
print(held - int(open("/proc/self/statm").read().split()[1]))
"""


def faults_and_given_back(mode: str) -> tuple[int, int]:
    """Page faults of making arrays of 40 MiB over and over, and the pages given back at the end."""
    script = _SCRIPT.format(arrays=_ARRAYS)
    ran = subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, check=True)
    faults, given_back = map(int, ran.stdout.split())
    return faults, given_back


def test_memory_that_is_kept_is_asked_for_once_and_can_be_given_back() -> None:
    kept, given_back = faults_and_given_back("keep")
    plain, _ = faults_and_given_back("plain")
    assert kept < plain / (_ARRAYS / 4)
    assert given_back > _PAGES / 2
