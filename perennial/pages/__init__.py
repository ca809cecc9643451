"""The look that the pages which Perennial writes have in common: `house.html` is their style sheet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES: Final = Path(__file__).parent


@cache  # so that its templates are compiled once a process
def page_environment(folder: Path) -> Environment:
    """Finds a page's own templates in its folder and the common ones here; a page includes the style in its own
    `<style>`. All that is put into a page is escaped, and a name that is not known is an error."""
    return Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
