"""The page at `/`: the calls of the OpenAPI document, for people."""

from __future__ import annotations

import html
from typing import Any


def page_of(whole: dict[str, Any]) -> str:
    """One page without anything from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td><td>{html.escape(each['summary'])}</td></tr>"
        for path, operations in whole["paths"].items()
        for method, each in operations.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Perennial</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem .8rem .2rem 0;vertical-align:top}pre{overflow:auto}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}a{color:#8cf}}</style>"
        "<h1>Perennial</h1><p>Classifies images with the live model, and records every prediction.</p>"
        "<pre>curl --data-binary @photo.jpg &lt;this address&gt;/v1/predict</pre>"
        f'<table>{rows}</table><p><a href="/docs.json">The OpenAPI document of these calls</a></p></html>'
    )
