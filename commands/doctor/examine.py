"""All the checks in the order in which one may keep another from running."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from commands.doctor import clock, database, disk, home, model, ports, processor, settings, storage, versions
from commands.doctor.findings import Finding, not_checked

_WITH_SETTINGS: Final = ("home", "disk", "database", "clock", "storage", "model", "processor", "ports")


def examine(
    config: Path | None, name: str | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> list[Finding]:
    """What every check found. `config` and `name` are the options of that name; `now` is this machine's clock."""
    found = versions.look()
    known, seen = settings.look(config, name)
    found += seen
    if known is None:
        return found + [not_checked(check, "the settings cannot be read") for check in _WITH_SETTINGS]
    os.environ.setdefault("BENTOML_HOME", str(known.home_path / "bentoml"))
    found += home.look(known) + disk.look(known)
    engine, seen = database.look(known)
    found += seen
    try:
        found += clock.look(engine, known, now)
        seen = storage.look(known, engine)
        found += seen
        found += model.look(known, engine, reachable=not any(each.level == "problem" for each in seen))
    finally:
        if engine is not None:
            engine.dispose()
    return found + processor.look(known) + ports.look(known)
