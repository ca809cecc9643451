"""W3C Trace Context (https://www.w3.org/TR/trace-context/, Level 1 and 2): whose trace a request belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = b"traceparent"
# version - trace id - parent id - flags; a later version may have more after them.
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The trace id of the header `traceparent`, read as strictly as the specification asks: 32 hexadecimal digits, or
    None if there is no such header, more than one, or one that is not valid."""
    sent = [value for name, value in headers if name == HEADER]
    match = _TRACEPARENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        return None
    version, trace, parent, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if trace == b"0" * 32 or parent == b"0" * 16:
        return None
    return str(trace, "ascii")
