"""The look that the pages which Perennial writes have in common: `house.html` is their style sheet.

A Jinja environment finds it by having `TEMPLATES` among its folders; a page includes it in its own `<style>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TEMPLATES: Final = Path(__file__).parent
