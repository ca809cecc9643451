"""docs/http.md says everything there is."""

from __future__ import annotations

import re
from pathlib import Path

from perennial import errors
from perennial.errors import PerennialError
from service import routes

TEXT = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
# These are raised by commands, never by a request.
COMMANDS_ONLY = {"invalid-dataset"}


def test_every_route_is_documented() -> None:
    app = routes.build(lambda: None)  # type: ignore[arg-type,return-value]
    for route in app.routes:
        method = "POST" if "POST" in route.methods else "GET"  # type: ignore[attr-defined]
        assert f"`{method} {route.path}`" in TEXT, route  # type: ignore[attr-defined]


def test_every_problem_is_documented_with_its_status() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, PerennialError)]
    spoken = {each.slug: each.status for each in classes if each.status != 500} | {"internal": 500}
    listed = {
        slug: int(status) for status, slug in re.findall(r"^\| (\d+) \| `([a-z-]+)` \|", TEXT, flags=re.MULTILINE)
    }
    assert listed == {slug: status for slug, status in spoken.items() if slug not in COMMANDS_ONLY}
