"""`perennial ...` without a process of its own.

A new interpreter takes one to seven seconds to import what a command needs; where a test looks at what a command says
and does, and not at the process that it is, this one has imported it already.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from commands import console, main


def perennial_here(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What the `perennial` script does with these arguments in this folder: the same `main`, its messages and its exit
    code. What a command changes of this process (variables, options, signals, the garbage collector) is put back."""
    said, complained, code = io.StringIO(), io.StringIO(), 0
    words = ["perennial", *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    collecting = gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", words)
        patch.setattr(console, "invocation", console.Invocation())
        try:
            with redirect_stdout(said), redirect_stderr(complained):
                main.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            gc.set_threshold(*collecting)
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())
