"""docs/http.md says everything there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perennial import errors
from perennial.errors import PerennialError
from service import routes
from tests.service.conftest import Server, picture, wait

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


def test_the_client_that_is_shown_works_as_it_stands(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, section = TEXT.partition("## From Python, typed")
    code = section.partition("```python\n")[2].partition("```")[0]
    shown: Any = ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", shown)  # where dataclasses look
    exec(compile(code, "docs/http.md", "exec"), vars(shown))
    client = shown.Perennial(shared_server.url)
    found = client.predict(picture("green", seed=5), source="a test")
    assert found.label == "green"
    assert 0 < found.confidence <= 1
    assert shared_server.serves(found.model_version)

    def labelled() -> bool:  # a prediction is in the ledger a moment after its answer
        try:
            client.label(found, "blue")
        except shown.Refused as error:
            if error.problem["status"] != 404:
                raise
            return False
        return True

    assert wait(labelled, 10)
    with pytest.raises(shown.Refused, match="image"):
        client.predict(b"no image")
    client.close()
