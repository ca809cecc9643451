"""The look that the pages which Perennial writes have in common: `house.html` is their style sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

_TEMPLATES: Final = Path(__file__).parent


class _InMemory(BytecodeCache):
    """What templates were compiled to, for as long as the process lives: each page has an environment of its own."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, str], bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if compiled := self._compiled.get((bucket.key, bucket.checksum)):
            bucket.bytecode_from_string(compiled)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._compiled[bucket.key, bucket.checksum] = bucket.bytecode_to_string()


_compiled: Final = _InMemory()


def page_environment(folder: Path) -> Environment:
    """Finds a page's own templates in its folder and the common ones here; a page includes the style in its own
    `<style>`. All that is put into a page is escaped, and a name that is not known is an error."""
    return Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_compiled,
    )
