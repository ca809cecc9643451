"""The page at `/ops` and its assets. They hold no data, so they need no key; what they read may."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from service.edge import Page, etag_of

_FOLDER: Final = Path(__file__).parent / "assets"
_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
#: By path: the file, its media type, and what it is.
ASSETS: Final = {
    "/ops": ("ops.html", "text/html; charset=utf-8", "The operations page."),
    "/ops/ops.js": ("ops.js", _SCRIPT, "Its script."),
    "/ops/calls.js": ("calls.js", _SCRIPT, "Its calls on the service."),
    "/ops/elements.js": ("elements.js", _SCRIPT, "Its elements and words."),
    "/ops/charts.js": ("charts.js", _SCRIPT, "Its timelines."),
    "/ops/sections.js": ("sections.js", _SCRIPT, "Its sections."),
    "/ops/labelling.js": ("labelling.js", _SCRIPT, "Its labelling tray."),
    "/ops/outbox.js": ("outbox.js", _SCRIPT, "Its labels on their way."),
    "/ops/tryit.js": ("tryit.js", _SCRIPT, "Its field to try an image in."),
    "/ops/icon.svg": ("icon.svg", "image/svg+xml", "Its icon."),
    "/ops/ops.css": ("ops.css", _STYLE, "Its style."),
    "/ops/uplot.js": ("uplot.js", _SCRIPT, "The charts' library, uPlot."),
    "/ops/uplot.css": ("uplot.css", _STYLE, "The charts' style."),
}
# Nothing from elsewhere, and no script but its own: neither a label nor a class name can become one.
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


def pages() -> dict[str, Page]:
    """What the Edge answers at the paths of `ASSETS`."""
    found = {}
    for path, (name, media_type, _) in ASSETS.items():
        body = (_FOLDER / name).read_bytes()
        found[path] = Page(media_type, body, etag_of(body), _HEADERS)
    return found
