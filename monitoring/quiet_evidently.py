"""Evidently's imports, without its telemetry and its warnings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by evidently on import


@contextmanager
def quietly() -> Iterator[None]:
    """Import Evidently, or put its app together, under this. The first such import costs seconds and some 150 MB."""
    with warnings.catch_warnings():
        # Evidently touches numpy.core and litestar's old names while it is imported; nothing we could do better.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"litestar\..*")
        yield
