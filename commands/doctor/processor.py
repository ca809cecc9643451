"""What does the processor offer, and do the settings ask for more?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from commands.doctor.findings import Finding, ok, problem, set_to, warning
from perennial.errors import InvalidSettings
from perennial.settings import Settings

_CHECK: Final = "processor"
_CPUINFO: Final = Path("/proc/cpuinfo")
#: What makes inference quick, as Linux names it.
_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def look(settings: Settings) -> list[Finding]:
    from perennial.graph import OPENVINO, available_precisions, fastest_runtime, gpus
    from perennial.openvino_graph import core

    serve, cores = settings.serve, _cores()
    try:
        runtime = fastest_runtime() if serve.runtime == "auto" else serve.runtime
        able = available_precisions(runtime)
    except InvalidSettings as error:
        return [problem(_CHECK, error.detail, set_to("serve.runtime", "auto"))]
    except (ImportError, RuntimeError) as error:  # a library of it that this system lacks
        return [problem(_CHECK, f"OpenVINO cannot be loaded: {error}", "pip install --force-reinstall openvino")]
    devices = ", ".join(core().available_devices) if runtime == OPENVINO else f"{gpus()} GPUs"
    flags = features(_CPUINFO.read_text("utf-8")) if _CPUINFO.exists() else []
    found = []
    if serve.precision not in ("auto", *able):
        said = f"serve.precision is {serve.precision}, but {runtime} computes in {', '.join(able)} on this machine"
        found.append(problem(_CHECK, said, set_to("serve.precision", "auto")))
    if serve.workers > cores:
        said = f"serve.workers is {serve.workers}, but there are {cores} cores: they only wait for one another"
        found.append(warning(_CHECK, said, set_to("serve.workers", max(1, cores // 4))))
    if serve.threads > 4 * cores:
        said = f"serve.threads is {serve.threads}, but there are {cores} cores"
        found.append(warning(_CHECK, said, set_to("serve.threads", 0)))
    if os.uname().machine == "x86_64" and flags and "avx2" not in flags:
        said = "this processor has no AVX2: inference takes several times as long"
        found.append(warning(_CHECK, said, "serve on a processor with AVX2 (in a virtual machine: pass the host's on)"))
    said = f"{cores} cores; {' '.join(flags) or 'features unknown'}; {runtime} on {devices}, {', '.join(able)}"
    return found or [ok(_CHECK, said)]


def features(cpuinfo: str) -> list[str]:
    """Of `_FLAGS` those that a `/proc/cpuinfo` names."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return [flag for flag in _FLAGS if flag in value.split()]
    return []


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
