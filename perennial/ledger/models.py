"""Models: every bundle ever made, by version."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from perennial.bundle import Bundle, Manifest
from perennial.errors import UnknownModel
from perennial.ledger.connect import reading, writing
from perennial.ledger.schema import models


@dataclass(frozen=True, slots=True)
class Model:
    version: str
    name: str
    bundle_url: str
    digest: str
    parent: str | None
    manifest: Manifest
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a model in a row of many, without the rest of its manifest. `accuracy`: an estimate."""

    version: str
    parent: str | None
    created_at: datetime
    backbone: str
    strategy: str
    why: str
    classes: tuple[str, ...]
    accuracy: dict[str, Any] | None


def register(engine: sa.Engine, bundle: Bundle, bundle_url: str) -> None:
    """Enter a bundle that lies whole in storage."""
    manifest = bundle.manifest
    with writing(engine) as connection:
        connection.execute(
            sa.insert(models).values(
                version=manifest.version,
                name=manifest.name,
                bundle_url=bundle_url,
                digest=bundle.digest,
                parent=manifest.parent,
                manifest=manifest.model_dump(mode="json"),
                created_at=manifest.created_at,
            )
        )


def get(engine: sa.Engine, name: str, version: str) -> Model:
    """Raises UnknownModel, which names the versions there are."""
    with reading(engine) as connection:
        query = sa.select(models).where(models.c.name == name, models.c.version == version)
        row = connection.execute(query).one_or_none()
    if row is None:
        have = ", ".join(model.version for model in all_of(engine, name)[-5:]) or "none yet"
        raise UnknownModel(f"{name} has no version {version!r}; the newest are: {have}")
    return _model(row)


def all_of(engine: sa.Engine, name: str) -> list[Model]:
    """Every model of that name, oldest first."""
    with reading(engine) as connection:
        query = sa.select(models).where(models.c.name == name).order_by(models.c.version)
        return [_model(row) for row in connection.execute(query)]


def cards(
    engine: sa.Engine,
    name: str,
    limit: int,
    *,
    also: Collection[str] = (),
    known: MutableMapping[str, Card] | None = None,
) -> list[Card]:
    """The newest models of that name, newest first, and those of these versions.

    Args:
        known: cards by version that need not be read again, as no model ever changes; what is read is put there.
    """
    known = {} if known is None else known
    manifest = models.c.manifest
    parts = [manifest[part].label(part) for part in ("backbone", "strategy", "why", "classes")]
    accuracy = manifest["metrics"]["accuracy"].label("accuracy")
    query = sa.select(models.c.version, models.c.parent, models.c.created_at, *parts, accuracy)
    of_name = sa.select(models.c.version).where(models.c.name == name).order_by(models.c.version.desc())
    with reading(engine) as connection:
        wanted = set(connection.execute(of_name.limit(limit)).scalars())
        if also:
            wanted |= set(connection.execute(of_name.where(models.c.version.in_(list(also)))).scalars())
        unknown = wanted - known.keys()
        for row in (
            connection.execute(query.where(models.c.name == name, models.c.version.in_(unknown))) if unknown else ()
        ):
            known[row.version] = Card(
                row.version, row.parent, row.created_at, row.backbone, row.strategy, row.why, tuple(row.classes),
                row.accuracy,
            )  # fmt: skip
        return [known[version] for version in sorted(wanted, reverse=True) if version in known]


def versions(engine: sa.Engine, name: str) -> list[str]:
    """Every version of that name, oldest first."""
    query = sa.select(models.c.version).where(models.c.name == name).order_by(models.c.version)
    with reading(engine) as connection:
        return list(connection.execute(query).scalars())


def bundle_urls(engine: sa.Engine) -> dict[str, str]:
    """Every model's version, whatever its name, and where its bundle lies."""
    with reading(engine) as connection:
        return {
            row.version: row.bundle_url for row in connection.execute(sa.select(models.c.version, models.c.bundle_url))
        }


def lineage(engine: sa.Engine, name: str, version: str) -> tuple[str, ...]:
    """A version and those it descends from, newest first."""
    parents = {model.version: model.parent for model in all_of(engine, name)}
    found: list[str] = []
    following: str | None = version
    while following is not None and following not in found:
        found.append(following)
        following = parents.get(following)
    return tuple(found)


def _model(row: sa.Row[Any]) -> Model:
    return Model(
        row.version,
        row.name,
        row.bundle_url,
        row.digest,
        row.parent,
        Manifest.model_validate(row.manifest),
        row.created_at,
    )
