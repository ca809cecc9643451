"""JSON as it goes over the wire."""

from __future__ import annotations

import json
from typing import Any

import orjson


def json_body(document: Any) -> bytes:
    """UTF-8, compact; NaN and infinity are null, as JSON has neither."""
    try:
        return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # half a surrogate pair, which is no UTF-8, or a number of more than 64 bits
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
