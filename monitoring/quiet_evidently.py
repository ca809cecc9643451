"""Evidently's imports: without its telemetry and its warnings, and faster by a fifth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Final
from unittest.mock import patch

from pydantic.v1 import main as pydantic_v1

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by evidently on import

#: What pydantic sets anew or fills in place when a class inherits a field; all else it only reads.
_FILLED: Final = ("class_validators", "field_info")


@contextmanager
def quietly() -> Iterator[None]:
    """Import Evidently, or put its app together, under this. The first such import costs seconds and some 150 MB."""
    # A fifth of the import is pydantic's: it copies the fields of each base class, and all that hangs on them.
    with warnings.catch_warnings(), patch.object(pydantic_v1, "smart_deepcopy", _inherited):
        # Evidently touches numpy.core and litestar's old names while it is imported; nothing we could do better.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"litestar\..*")
        yield


def _inherited(fields: dict[str, Any]) -> dict[str, Any]:
    """A base class's fields for a class that inherits them, copied as deep as the new class may change them."""
    return {name: _copied(field) for name, field in fields.items()}


def _copied(field: Any) -> Any:
    copied = copy(field)
    for name in _FILLED:
        setattr(copied, name, copy(getattr(field, name)))
    if field.sub_fields:
        copied.sub_fields = [_copied(each) for each in field.sub_fields]
    return copied
