"""Does the ledger's database answer, take writes, and have the schema that this code knows?"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.doctor.findings import Finding, make_writable, not_checked, ok, problem, set_to, warning
from perennial.errors import InvalidSettings, LedgerUnavailable
from perennial.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

_CHECK: Final = "database"
_ROUNDS: Final = 5
#: Each answered prediction, label and check asks it a few times.
_SLOW_SECONDS: Final = 0.1


def look(settings: Settings) -> tuple[sa.Engine | None, list[Finding]]:
    """An engine on the ledger as it is, None if it cannot be used; and what was found. Nothing is migrated."""
    from sqlalchemy.exc import SQLAlchemyError

    from perennial.ledger.connect import unmigrated

    try:
        file = _file(settings.ledger_url)
        if file is not None and not file.exists():
            said = f"there is no ledger at {file} yet; it is made at the first use"
            return None, [not_checked(_CHECK, said)]
        engine = unmigrated(settings.ledger_url)
    except (InvalidSettings, SQLAlchemyError) as error:
        return None, [problem(_CHECK, str(error), _correct_url(settings, str(error)))]
    try:
        found, usable = _examined(engine, settings, file)
    except LedgerUnavailable as error:
        found, usable = problem(_CHECK, error.detail, _reach(settings, engine, file)), False
    except SQLAlchemyError as error:
        said = f"{settings.ledger_url if file else engine.url!r} is no ledger: {getattr(error, 'orig', error)}"
        found, usable = problem(_CHECK, said, "put back a backup of it, or set database_url to another one"), False
    if not usable:
        engine.dispose()
        return None, [found]
    return engine, [found]


def _examined(engine: sa.Engine, settings: Settings, file: Path | None) -> tuple[Finding, bool]:
    """What was found, and whether the tables are those that this code knows."""
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError

    from perennial.ledger.connect import reading, revision, writing
    from perennial.ledger.schema import HEAD, leases

    shown = engine.url.render_as_string(hide_password=True)
    with reading(engine) as connection:
        took = []
        for _ in range(_ROUNDS):
            began = time.monotonic()
            connection.execute(sa.text("SELECT 1"))
            took.append(time.monotonic() - began)
    latency = statistics.median(took)
    schema = revision(engine)
    if schema is None:
        return warning(_CHECK, f"{shown} is empty", "perennial train DATA (it makes the tables)"), False
    if not schema.isdigit() or int(schema) > int(HEAD):
        said = f"{shown} was written by a newer Perennial: its schema is {schema}, this one knows {HEAD}"
        return problem(_CHECK, said, _newer(file)), False
    if schema != HEAD:
        said = f"{shown} has the schema {schema}; it is migrated to {HEAD} at the next use"
        return warning(_CHECK, said, "perennial models list (it migrates; keep a backup of the ledger first)"), False
    try:
        with writing(engine) as connection:  # takes the write lock, or the server's refusal, and changes nothing
            connection.execute(sa.delete(leases).where(leases.c.name == ""))
    except LedgerUnavailable as error:
        return problem(_CHECK, f"{shown} takes no writes: {error.detail}", _unlock(file)), True
    except DBAPIError as error:
        return problem(_CHECK, f"{shown} takes no writes: {error.orig}", _unlock(file)), True
    said = f"{shown}, schema {schema}, answers in {latency * 1000:.1f} ms"
    if latency > _SLOW_SECONDS:
        return warning(_CHECK, said, "move the database nearer, or set database_url to a nearer one"), True
    return ok(_CHECK, said), True


def _file(url: str) -> Path | None:
    """The file of a SQLite ledger; None for others."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:  # opening it says so
        return None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database).expanduser().absolute()


def _correct_url(settings: Settings, said: str) -> str:
    if "pip install" in said:
        return f"pip install{said.rpartition('pip install')[2]}"
    return (
        f"{set_to('database_url', '')} (that is SQLite in {settings.home_path}), or to a URL such as "
        "postgresql://user@host/perennial"
    )


def _reach(settings: Settings, engine: sa.Engine, file: Path | None) -> str:
    if file is not None:
        return _unlock(file)
    where = f"{engine.url.host or 'localhost'}:{engine.url.port or 5432}"
    return (
        f"start the database server at {where}; or {set_to('database_url', '')} (that is SQLite in "
        f"{settings.home_path}), or to a URL such as postgresql://user@host/perennial"
    )


def _unlock(file: Path | None) -> str:
    if file is None:
        return "set database_url to the primary server, as a user that may write"
    closed = [place for place in (file.parent, file) if not os.access(place, os.W_OK)]
    if closed:
        return make_writable(closed[0])
    return f"end the process that keeps it locked (fuser {file}), or move it to a local disk: set database_url"


def _newer(file: Path | None) -> str:
    backup = f"put back a backup of {file}" if file is not None else "set database_url to another ledger"
    return f"pip install --upgrade perennial; or {backup}"
