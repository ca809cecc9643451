"""Does this machine's clock agree with the ledger's rows, and with the database server's?"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from commands.doctor.findings import Finding, not_checked, ok, problem, warning
from perennial.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

_CHECK: Final = "clock"
#: Clocks that NTP keeps differ by far less.
_TOLERATED: Final = timedelta(seconds=5)
#: From here on windows, schedules and retention go by a wrong time.
_WRONG: Final = timedelta(seconds=60)


def look(engine: sa.Engine | None, settings: Settings, now: Callable[[], datetime]) -> list[Finding]:
    """`now` is this machine's clock; nothing is asked of the internet."""
    if engine is None:
        return [not_checked(_CHECK, "it is compared with the ledger's rows, and the database cannot be used")]
    found = [each for each in (_newest_row(engine, settings, now()), _server(engine, now)) if each is not None]
    return found or [ok(_CHECK, f"{now():%Y-%m-%d %H:%M:%S} UTC; no row of the ledger lies ahead of it")]


def _newest_row(engine: sa.Engine, settings: Settings, now: datetime) -> Finding | None:
    import sqlalchemy as sa

    from perennial.ledger.connect import reading
    from perennial.ledger.schema import deployments, events, predictions

    moments: dict[str, datetime | None] = {}
    with reading(engine) as connection:
        # Ids of predictions begin with their time, so the last id is the newest row without a search.
        query = sa.select(predictions.c.at).order_by(predictions.c.id.desc()).limit(1)
        moments["prediction"] = connection.execute(query).scalar()
        for what, table in (("event", events), ("deployment", deployments)):
            newest = sa.select(table.c.at).where(table.c.name == settings.name).order_by(table.c.id.desc()).limit(1)
            moments[what] = connection.execute(newest).scalar()
    known = {what: at for what, at in moments.items() if at is not None}
    if not known:
        return None
    what = max(known, key=known.__getitem__)
    ahead = known[what] - now
    if ahead < _WRONG:
        return None
    said = f"the newest {what} of the ledger is dated {known[what]:%Y-%m-%d %H:%M:%S} UTC, {_span(ahead)} ahead of now"
    mend = (
        "if `date -u` is wrong: sudo timedatectl set-ntp true; if it is right: set the clock of the machine that wrote "
        "it, and wait until that time, or put back a backup of the ledger"
    )
    return problem(_CHECK, said, mend)


def _server(engine: sa.Engine, now: Callable[[], datetime]) -> Finding | None:
    if engine.dialect.name != "postgresql":
        return None
    import sqlalchemy as sa

    from perennial.ledger.connect import reading

    with reading(engine) as connection:
        connection.execute(sa.text("SELECT 1"))  # the way there and back is timed without the opening
        began = time.monotonic()
        theirs: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        trip = timedelta(seconds=time.monotonic() - began)
    apart = abs(theirs.astimezone(UTC) - (now() - trip / 2))
    if apart < _TOLERATED + trip:
        return None
    said = f"the database server's clock and this machine's differ by {_span(apart)}: leases go by the server's"
    mend = "on the one that `date -u` shows to be wrong: sudo timedatectl set-ntp true"
    return problem(_CHECK, said, mend) if apart >= _WRONG else warning(_CHECK, said, mend)


def _span(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))
