"""Closed-loop load: `wrk` with `load.lua`. Every client sends its next image as soon as it has its answer."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.serving.material import Bodies

SCRIPT: Final = Path(__file__).with_name("load.lua")
# wrk's own default of two seconds is less than a slow server needs for 32 clients with large photos.
_TIMEOUT: Final = "60s"


@dataclass(frozen=True)
class Load:
    """What wrk saw. Latencies and `cpu` (wrk's own time on the processor) in milliseconds; `errors` counts answers
    of 400 and above (`refused`), broken connections and timeouts."""

    requests: int
    seconds: float
    errors: int
    refused: int
    p50: float
    p90: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def require() -> str:
    """The path of wrk; ends the program, saying how to get it, where it is missing."""
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("the load comes from wrk, which is not installed: apt-get install wrk (or brew install wrk)")
    return found


def run(url: str, bodies: Bodies, *, clients: int, seconds: float, mark: str = "", pause: float | None = None) -> Load:
    """Post `bodies` from `clients` connections for a while; with `mark`, no two bodies are the same. With `pause` each
    client rests before each request, about so many milliseconds."""
    command = [
        require(), "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", _TIMEOUT, "-s", str(SCRIPT), url,
        "--", str(bodies.listing), bodies.content_type, mark, *([str(pause)] if pause is not None else []),
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"wrk failed:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return parse(line, cpu * 1000)


def parse(line: str, cpu: float) -> Load:
    """The line that `load.lua` prints."""
    said = json.loads(line.removeprefix("RESULT "))
    errors = sum(said[kind] for kind in ("status", "connect", "read", "write", "timeout"))
    return Load(said["requests"], said["seconds"], errors, said["status"], said["p50"], said["p90"], said["p99"], cpu)
