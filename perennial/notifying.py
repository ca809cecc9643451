"""Telling webhooks of a model's events: in order, each at least once, however often sender or receiver fail.

The ledger holds how far each webhook is (`perennial.ledger.webhook_positions`), so nothing is lost with a process. One
process at a time sends to a webhook, by a lease. One that is killed between sending and noting it leaves an event that
the next one sends again, under the same id.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from perennial.errors import LeaseHeld, LedgerUnavailable
from perennial.ledger import EventKind, events, leases, webhook_positions
from perennial.settings import Settings
from perennial.webhooks import Webhook, configured, message_of, send

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 2.0  # seconds
_LONGEST_PAUSE: Final = 600.0
_LOOK_SECONDS: Final = 2.0
_LEASE_MARGIN: Final = 20.0  # seconds that the ledger may take, beside what the webhook may


@dataclass(frozen=True, slots=True)
class Told:
    """What one pass came to. `refused` events were given up; `left` is why the pass ended before all was told: what the
    webhook said, or that another process is sending to it."""

    webhook: str
    delivered: int = 0
    refused: int = 0
    left: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "webhook": self.webhook,
            "delivered": self.delivered,
            "refused": self.refused,
            "pending": bool(self.left),
            "why": self.left or None,
        }


def tell_all(engine: sa.Engine, settings: Settings) -> tuple[Told, ...]:
    """One pass over every webhook, all at once: whatever is pending, up to the first event that one does not take.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    found = configured(settings.notify)
    with ThreadPoolExecutor(max(1, len(found))) as pool:
        return tuple(pool.map(lambda webhook: tell(engine, settings, webhook), found))


def tell(
    engine: sa.Engine,
    settings: Settings,
    webhook: Webhook,
    *,
    patient: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Told:
    """Send a webhook what it has not been told yet, oldest first, until it takes no more.

    Args:
        patient: wait after a failure, as long as the pause after it says, instead of trying at once.
        stopped: asked before each event.
    """
    name = settings.name
    kinds = [EventKind(kind) for kind in settings.notify.events]
    delivered = refused = 0
    while not stopped():
        if not _pending(engine, name, webhook, kinds, patient=patient):
            break
        try:
            with leases.held(engine, f"notify:{name}:{webhook.key[:16]}", webhook.timeout + _LEASE_MARGIN):
                # Looked up again: another process may have sent it between the look and the lease.
                at = webhook_positions.position(engine, name, webhook.key)
                event = next(iter(events.after(engine, name, at.event_id, kinds=kinds, limit=1)), None)
                if event is None or (patient and _is_put_off(at)):
                    continue
                answer = send(webhook, message_of(event))
                if answer.outcome == "retry":
                    pause = max(answer.pause, pause_after(at.attempts + 1))
                    until = datetime.now(UTC) + timedelta(seconds=pause)
                    webhook_positions.put_off(engine, name, webhook.key, at, until)
                    if not patient or at.attempts.bit_count() < 2:  # 1st, 2nd, 3rd, 5th, 9th time: it may be days
                        logger.warning("%s does not take event %d, tried again: %s", webhook.shown, event.id, answer)
                    return Told(webhook.shown, delivered, refused, str(answer))
                webhook_positions.advance(engine, name, webhook.key, at, event.id)
        except LeaseHeld:
            return Told(webhook.shown, delivered, refused, "another process is sending to it")
        if answer.outcome == "refused":
            refused += 1
            logger.error("%s refuses event %d (%s), which is given up: %s", webhook.shown, event.id, event.kind, answer)
        else:
            delivered += 1
            if at.attempts:
                logger.warning("%s took event %d after %d attempts", webhook.shown, event.id, at.attempts + 1)
    return Told(webhook.shown, delivered, refused)


def pause_after(attempts: int) -> float:
    """Seconds until the next attempt: doubled each time, and by chance up to a half less, so that senders that failed
    together do not come back together."""
    longest = min(_FIRST_PAUSE * 2.0 ** min(attempts - 1, 20), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing is kept secret with it


def _pending(engine: sa.Engine, name: str, webhook: Webhook, kinds: Sequence[EventKind], *, patient: bool) -> bool:
    at = webhook_positions.position(engine, name, webhook.key)
    if patient and _is_put_off(at):
        return False
    newest = next(iter(events.newest(engine, name, 1)), None)
    if newest is None or newest.id <= at.event_id:
        return False
    if events.after(engine, name, at.event_id, kinds=kinds, limit=1):
        return True
    # Whoever asks for another kind later is not told of all that went by until then.
    webhook_positions.advance(engine, name, webhook.key, at, newest.id)
    return False


def _is_put_off(at: webhook_positions.Position) -> bool:
    return at.retry_at is not None and at.retry_at > datetime.now(UTC)


class Notifier:
    """Tells every webhook for as long as it runs, each in a thread of its own, so that none waits for another.

    Args:
        ledger: gives the ledger; may raise LedgerUnavailable, which is waited out.
    """

    def __init__(self, ledger: Callable[[], sa.Engine], settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(webhook,), name=f"notify {webhook.key[:8]}", daemon=True)
            for webhook in configured(settings.notify)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> None:
        """Begin no more; wait at most so long for what is being sent."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, webhook: Webhook) -> None:
        away = False
        while not self._stop.is_set():
            try:
                tell(self._ledger(), self._settings, webhook, patient=True, stopped=self._stop.is_set)
                away = False
            except LedgerUnavailable as error:
                if not away:
                    away = True
                    logger.warning("%s is told later, the ledger is away: %s", webhook.shown, error)
            except Exception:  # this thread must outlive any surprise, or nobody would be told any more
                logger.exception("telling %s failed; tried again", webhook.shown)
            self._stop.wait(_LOOK_SECONDS)
