"""The ledger's tables (SQLAlchemy Core), the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Dialect

#: The newest migration; a database at another revision is migrated, or refused if it is newer than this code.
HEAD: Final = "0008"


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A moment. Python sees aware datetimes in UTC only; a naive one is an error."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be kept in the ledger")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Vector(sa.types.TypeDecorator[NDArray[np.float32]]):
    """A float32 vector as little-endian bytes: a quarter of JSON's size, and no parsing."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else np.asarray(value, dtype="<f4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[np.float32] | None:
        return None if value is None else np.frombuffer(value, dtype="<f4").astype(np.float32)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite counts rows by itself only in a column of exactly the type INTEGER.
_Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # UUIDv7: sorts by time
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("model_version", sa.String(64), nullable=False),
    sa.Column("precision", sa.String(16), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("confidence", sa.Float, nullable=False),
    sa.Column("probabilities", Vector, nullable=False),
    sa.Column("embedding", Vector, nullable=False),
    sa.Column("properties", Vector, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("image_url", sa.Text),  # null when the image was not captured
    sa.Column("source", sa.String(200)),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Index(None, "model_version", "id"),
    sa.Index(None, "at"),
    # Retention asks which rows name an image; rows without one cost nothing here.
    sa.Index(
        None,
        "image_digest",
        sqlite_where=sa.text("image_url IS NOT NULL"),
        postgresql_where=sa.text("image_url IS NOT NULL"),
    ),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("id", _Serial, primary_key=True, autoincrement=True),
    sa.Column("prediction_id", sa.String(36), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("source", sa.String(200)),
    # Whether it is a class of the model that answered; one that is not counts only once it becomes a class.
    sa.Column("known", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Index(None, "prediction_id", "id"),
    # The few that are no class are looked at by every check; labels that are one cost nothing here.
    sa.Index(None, "id", sqlite_where=sa.text("known = 0"), postgresql_where=sa.text("NOT known")),
)

traffic = sa.Table(
    "traffic",
    metadata,
    sa.Column("at", UtcDateTime, primary_key=True),  # the beginning of a minute
    sa.Column("model_version", sa.String(64), primary_key=True),
    sa.Column("answered", sa.Integer, nullable=False),
)

rejected_images = sa.Table(
    "rejected_images",
    metadata,
    sa.Column("model_version", sa.String(64), primary_key=True),
    sa.Column("at", UtcDateTime, primary_key=True),  # the beginning of a minute
    sa.Column("reason", sa.String(64), primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("bundle_url", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("parent", sa.String(64)),
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index(None, "name", "version"),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", _Serial, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("event_id", _Serial, nullable=False),
    sa.Index(None, "name", "id"),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", _Serial, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("started", _Serial, nullable=False),  # the event that began it; all its rows have the same
    sa.Column("champion", sa.String(64), nullable=False),
    sa.Column("challenger", sa.String(64), nullable=False),
    sa.Column("stages", sa.JSON, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),  # counted from 0
    sa.Column("share", sa.Float, nullable=False),  # of the traffic that the challenger answers
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("event_id", _Serial, nullable=False),
    sa.Index(None, "name", "id"),
)

shadow_answers = sa.Table(
    "shadow_answers",
    metadata,
    sa.Column("prediction_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("label", sa.Text),  # null where it failed
    sa.Column("confidence", sa.Float),
    sa.Column("latency_ms", sa.Float),  # of the inference alone, as the next one
    sa.Column("champion_ms", sa.Float),
    sa.Column("fault", sa.Text),
    sa.Index(None, "version", "prediction_id"),
)

checks = sa.Table(
    "checks",
    metadata,
    sa.Column("id", _Serial, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("model_version", sa.String(64), nullable=False),
    sa.Column("window", sa.JSON, nullable=False),  # {"rows", "start", "end"}
    sa.Column("verdict", sa.String(32), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("report_url", sa.Text),
    sa.Index(None, "name", "id"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", _Serial, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("caused_by", _Serial),
    sa.Index(None, "name", "id"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("until", UtcDateTime, nullable=False),
)

watched_rows = sa.Table(
    "watched_rows",
    metadata,
    sa.Column("deployment_id", _Serial, primary_key=True, autoincrement=False),
    sa.Column("prediction_id", sa.String(36), primary_key=True),
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("live_answer", sa.Text, nullable=False),
    sa.Column("live_confidence", sa.Float, nullable=False),
    sa.Column("before_answer", sa.Text, nullable=False),
    sa.Column("before_confidence", sa.Float, nullable=False),
)

webhook_positions = sa.Table(
    "webhook_positions",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("webhook", sa.String(64), primary_key=True),  # the sha256 of its URL, which is a secret
    sa.Column("event_id", _Serial, nullable=False),  # the last event that needs no more sending
    sa.Column("attempts", sa.Integer, nullable=False),  # in vain, of the event after it
    sa.Column("retry_at", UtcDateTime),
)
