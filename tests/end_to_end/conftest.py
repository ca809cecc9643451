"""What a user types and sends: the `perennial` command and HTTP, each in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from training import lean_torchvision  # noqa: F401 - before a test imports torchvision, and with it torch's compiler

# isort: split
from tests.in_process import perennial_here


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


Run = Callable[..., Finished]


@pytest.fixture
def perennial(home: Path, tmp_path: Path) -> Run:
    """Runs `perennial ...` in an empty folder; `code` is the exit code it must have (None: any)."""

    def run(*arguments: str | Path, code: int | None = 0, timeout: float = 300, **variables: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "commands.main", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return _finished(done, code)

    return run


@pytest.fixture
def perennial_at_hand(home: Path, tmp_path: Path) -> Run:
    """The same without a process, for a command whose process another test starts."""

    def run(*arguments: str | Path, code: int | None = 0) -> Finished:
        return _finished(perennial_here(*arguments, cwd=tmp_path), code)

    return run


def _finished(done: subprocess.CompletedProcess[str], code: int | None) -> Finished:
    assert code is None or done.returncode == code, f"{done.args}: exit {done.returncode}\n{done.stderr}"
    return Finished(done.returncode, done.stdout, done.stderr)
