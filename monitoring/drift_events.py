"""What a check changes, told once each: the verdict, drift that opens or closes, a retrain that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from monitoring.persistence import Looked, Persistence, State, without_rows_in_common
from monitoring.verdict import Verdict
from perennial import ledger
from perennial.ledger import EventKind
from perennial.ledger.events import Event

_CHECKS_AT_ONCE: Final = 200

Told = tuple[EventKind, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class History:
    """`verdicts` of this window and those before it that share no rows, the latest first; `before` the verdict of the
    check before this one; `opened` the drift that nothing has closed yet, perhaps on another version."""

    version: str
    verdicts: tuple[Verdict, ...]
    before: str | None
    opened: Event | None
    rule: Persistence

    @property
    def state(self) -> State:
        is_open = self._open_on_this_version and not self.rule.closes(self.verdicts)
        return self.rule.state(self.verdicts, is_open=is_open)

    @property
    def opens(self) -> bool:
        return self.rule.opens(self.verdicts) and not self._open_on_this_version

    @property
    def _open_on_this_version(self) -> bool:
        return self.opened is not None and self.opened.detail.get("model_version") == self.version


def read_history(engine: sa.Engine, name: str, version: str, now: Looked, rule: Persistence) -> History:
    """What the ledger knows of a version's windows before this one."""
    looked, before, last = [now], None, None
    while True:
        page = ledger.checks.verdicts(engine, name, version, _CHECKS_AT_ONCE, before=last)
        before = before or (page[0][1] if page else None)
        looked += [Looked(Verdict(verdict), at.get("first"), at.get("last")) for _, verdict, at in page]
        found = without_rows_in_common(looked)
        if len(found) >= rule.looks_at or len(page) < _CHECKS_AT_ONCE:
            break
        last = page[-1][0]
    event = ledger.events.last(engine, name, (EventKind.DRIFT_OPENED, EventKind.DRIFT_CLOSED))
    opened = event if event is not None and event.kind is EventKind.DRIFT_OPENED else None
    return History(version, tuple(found[: rule.looks_at]), before, opened, rule)


def changes(history: History, verdict: Verdict, numbers: Mapping[str, Any]) -> list[Told]:
    """The events of verdict and drift; `numbers` go into each."""
    found: list[Told] = []
    if history.before != verdict:
        found.append((EventKind.CHECK_CHANGED, {"from": history.before, "to": str(verdict), **numbers}))
    if history.opens:
        found.append((EventKind.DRIFT_OPENED, dict(numbers)))
    if history.opened is not None and history.rule.closes(history.verdicts):
        # Perhaps another version's: a retrained model that knows today's traffic ends the drift of the one before.
        closed = {"opened": history.opened.id, "opened_on": history.opened.detail.get("model_version")}
        found.append((EventKind.DRIFT_CLOSED, {**numbers, **closed}))
    return found
