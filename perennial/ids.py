"""UUID version 7 (RFC 9562): ids that sort by the time they were made."""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import datetime


def new_id(milliseconds: int | None = None) -> str:
    """A new id; `milliseconds` since 1970 is now unless given."""
    at = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    value = (at & (2**48 - 1)) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def first_id(at: datetime) -> str:
    """No id that is made at this moment or later sorts before this one."""
    return str(uuid.UUID(int=(int(at.timestamp() * 1000) & (2**48 - 1)) << 80))


def milliseconds_of(identifier: str) -> int | None:
    """When an id was made, in milliseconds since 1970; None if it is not such an id."""
    try:
        parsed = uuid.UUID(identifier)
    except ValueError:
        return None
    return parsed.int >> 80 if parsed.version == 7 else None
