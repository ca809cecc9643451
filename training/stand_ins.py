"""Modules that an import asks for and does without: large ones, of which it wants one small thing, or none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def stand_in(name: str, **attributes: object) -> Iterator[None]:
    """While this lasts, to import `name` gives an empty module with these attributes, unless the real one is there
    already. Whoever wants the real one later imports that."""
    steps = name.split(".")
    missing = [".".join(steps[:end]) for end in range(1, len(steps) + 1)]
    modules = {each: ModuleType(each) for each in missing if each not in sys.modules}
    if name in modules:
        for module in modules.values():
            module.__path__ = []
        vars(modules[name]).update(attributes)
        sys.modules |= modules
    try:
        yield
    finally:
        for each, module in modules.items():
            if sys.modules.get(each) is module:
                del sys.modules[each]
