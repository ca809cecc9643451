"""Is what is installed what this Perennial asks for?"""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from itertools import pairwise

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from commands.doctor.findings import Finding, ok, problem, warning

_CHECK = "versions"


def look() -> list[Finding]:
    """Python and the packages, by what Perennial's own metadata says; nothing is imported."""
    try:
        ours = metadata.distribution("perennial")
    except metadata.PackageNotFoundError:
        return [warning(_CHECK, "perennial runs from a folder; it is not installed", "pip install --editable .")]
    asked = [Requirement(line) for line in ours.requires or []]
    python = platform.python_version()
    wanted = SpecifierSet(ours.metadata["Requires-Python"] or "")
    found = []
    if not wanted.contains(python, prereleases=True):
        mend = f"make a virtual environment with Python {wanted} and install Perennial there"
        found.append(problem(_CHECK, f"Python {python}; Perennial {ours.version} needs {wanted}", mend))
    found += [each for each in (judge(one, _installed(one.name)) for one in asked) if each is not None]
    extras = [extra for extra in ours.metadata.get_all("Provides-Extra") or [] if _complete(extra, asked)]
    if not found:
        said = f"Perennial {ours.version}, Python {python}, extras: {', '.join(extras) or 'none'}"
        found.append(ok(_CHECK, said))
    return found


def judge(asked: Requirement, installed: str | None) -> Finding | None:
    """What is wrong with one package; None if nothing is. One that only an extra asks for may be missing."""
    if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
        if installed is None or not any(asked.marker.evaluate({"extra": extra}) for extra in _extras(asked)):
            return None
    elif installed is None:
        return problem(_CHECK, f"{asked.name} is not installed", f"pip install '{asked.name}{asked.specifier}'")
    if asked.specifier.contains(installed, prereleases=True):
        return None
    said = f"{asked.name} {installed} is installed; Perennial asks for {asked.specifier}"
    return problem(_CHECK, said, f"pip install '{asked.name}{asked.specifier}'")


def _extras(asked: Requirement) -> list[str]:
    """The extras that a requirement's marker names."""
    words = str(asked.marker).replace("'", '"').split('"')
    return [word for before, word in pairwise(words) if before.rstrip().endswith("extra ==")]


def _complete(extra: str, asked: list[Requirement]) -> bool:
    of_it = [one for one in asked if one.marker is not None and extra in _extras(one)]
    return all(_installed(one.name) is not None for one in of_it)


@cache
def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
