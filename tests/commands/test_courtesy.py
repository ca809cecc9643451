"""A retrain stands back for the service, in its own process and session alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.settings import load_settings
from tests.conftest import ROOT

_TELL = """
import json, os, sys
from pathlib import Path
from commands.courtesy import give_way
give_way(int(sys.argv[1]), int(sys.argv[2]))
group = Path("/proc/self/autogroup")
# A process that never left the kernel's own session reads an empty line.
words = group.read_text().split() if group.exists() else []
print(json.dumps({
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "group": words[-1] if words else None,
    "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
}))
"""


def given_way(niceness: int, threads: int, *, session: bool, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", _TELL, str(niceness), str(threads)],
        cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True, check=True,
        start_new_session=session,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_lowers_its_own_priority_and_caps_its_threads() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    found = given_way(15, 2, session=False)
    assert found["nice"] == max(15, mine)
    assert found["threads"] == {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
    assert given_way(0, 1, session=False)["nice"] == mine, "what it was started with is not raised"
    assert given_way(15, 2, session=False, OMP_NUM_THREADS="3")["threads"]["OMP_NUM_THREADS"] == "3"


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
def test_a_session_of_its_own_gives_way_as_a_whole_and_another_ones_is_left_alone() -> None:
    before = Path("/proc/self/autogroup").read_text()
    assert given_way(12, 1, session=True)["group"] == str(max(12, os.getpriority(os.PRIO_PROCESS, 0)))
    given_way(12, 1, session=False)
    assert Path("/proc/self/autogroup").read_text() == before


def test_threads_of_a_retrain_are_half_of_the_cores_unless_set() -> None:
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert load_settings().retrain_threads == half
    assert load_settings(train={"threads": 1}).retrain_threads == 1
    assert load_settings(train={"threads": 1000}).retrain_threads == half
    assert load_settings(train={"threads": 1}, retrain={"threads": 3}).retrain_threads == 3
