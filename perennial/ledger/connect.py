"""Opening the ledger's database, migrating it, and the two ways to use it: `reading` and `writing`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from perennial.errors import InvalidSettings, LedgerUnavailable
from perennial.ledger.schema import HEAD

_BUSY_SECONDS: Final = 15
_BUSY_PAUSE_SECONDS: Final = 0.01
_MIGRATION_LOCK: Final = 7_165_377  # any number, the same for every Perennial
_BEGIN: Final = "perennial_begin"


def open_ledger(url: str, *, pool_size: int = 5) -> sa.Engine:
    """An engine on a database at the newest schema; an older one is migrated first.

    Raises:
        LedgerUnavailable: the database does not answer.
        InvalidSettings: the URL is not one, its driver is missing, or the database is newer than this Perennial.
    """
    engine = unmigrated(url, pool_size=pool_size)
    try:
        if revision(engine) != HEAD:
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def unmigrated(url: str, *, pool_size: int = 5) -> sa.Engine:
    """An engine on a database as it is. It is not asked for anything yet.

    Raises:
        LedgerUnavailable: the folder of a SQLite database cannot be made.
        InvalidSettings: the URL is not one, or its driver is missing.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed)
        return sa.create_engine(parsed, pool_pre_ping=True, pool_size=pool_size, connect_args={"connect_timeout": 5})
    except ModuleNotFoundError as error:
        raise InvalidSettings(
            f"database_url needs the driver {error.name}: pip install 'perennial[postgres]'"
        ) from error
    except sa.exc.ArgumentError as error:
        raise InvalidSettings(f"database_url is not a database URL: {error}") from error


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A consistent view of the ledger; nothing is written."""
    with _faults(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction: all of it is committed on leaving, or none of it."""
    # SQLite must take its write lock at once: upgrading a read lock later fails when another writer was faster.
    immediate = engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
    with _faults(), immediate.begin() as connection:
        yield connection


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise LedgerUnavailable(f"the database does not answer: {error.orig}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise LedgerUnavailable(f"the database went away: {error.orig}") from error
        raise
    except sa.exc.TimeoutError as error:
        raise LedgerUnavailable(f"no database connection became free: {error}") from error


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        folder = Path(url.database).expanduser().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerUnavailable(
                f"the folder {folder} cannot be made ({error.strerror}); see the settings home and database_url"
            ) from error
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        _write_ahead(cursor)
        # A commit outlives the process at once; only a power cut could take the last ones.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    # While another process changes a new file to this mode, SQLite says "locked" without waiting as it does elsewhere.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)


def revision(engine: sa.Engine) -> str | None:
    """The schema that the database has; None if it has none of our tables."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: sa.Engine) -> None:
    # Alembic is imported only here: a worker that finds the schema as it should be starts without it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":  # SQLite's write lock already lets in one at a time
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise InvalidSettings(
                f"the ledger's schema is not known to this Perennial; upgrade it ({error})"
            ) from error
