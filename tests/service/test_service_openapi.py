"""The OpenAPI document: it lists what there is, all of it, as it is; and a server that is attacked by it holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from openapi_spec_validator import validate

from perennial.settings import load_settings
from perennial.settings_sections import ReadPath
from service import openapi
from service.keys import SCOPES, digest_of, new_key
from service.ops.page import ASSETS
from tests.service.conftest import Server, make_world, picture, serving

METHODS = """
import json
from service.app import Perennial
print(json.dumps({path: sorted(methods - {"HEAD"}) for path, methods in Perennial.to_asgi().methods.items()}))
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(load_settings().serve)


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_it_lists_every_route_of_the_application_and_no_other(document: dict[str, Any], home: Path) -> None:
    # In a process of its own: an application can be made only once in one.
    run = subprocess.run([sys.executable, "-c", METHODS], capture_output=True, text=True, timeout=60, check=True)
    routes = json.loads(run.stdout.splitlines()[-1])
    listed = {path: sorted(method.upper() for method in calls) for path, calls in document["paths"].items()}
    assert listed == routes


def test_every_path_is_either_guarded_by_a_scope_or_only_reads(document: dict[str, Any]) -> None:
    reading = {path for path, calls in document["paths"].items() if set(calls) == {"get"}}
    page = {path for path in reading if path == "/ops" or path.startswith("/ops/")}  # which never needs a key
    assert page == set(ASSETS)
    assert reading - page == set(get_args(ReadPath))
    assert set(document["paths"]) - reading == set(SCOPES)


def test_it_knows_which_calls_need_a_key() -> None:
    keys = [{"name": "a", "scopes": ["feedback"], "sha256": "0" * 64}]
    paths = openapi.document(load_settings(serve={"keys": keys}).serve)["paths"]
    guarded = {path for path, calls in paths.items() for call in calls.values() if "security" in call}
    assert guarded == {"/v1/feedback"}
    assert "401" in paths["/v1/feedback"]["post"]["responses"]


def conforms(document: dict[str, Any], schema: str, answer: Any) -> None:
    jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}", "components": document["components"]})


def test_answers_and_examples_are_what_it_says(document: dict[str, Any], shared_server: Server) -> None:
    http = shared_server.http
    prediction = shared_server.predict(picture("red"))
    conforms(document, "Prediction", prediction)
    parts = [("images", picture("green")), ("images", b"no image")]
    conforms(document, "Batch", http.post("/v1/predict/batch", files=parts).json())
    feedback = [{"prediction_id": "unknown", "label": "red"}]
    conforms(document, "Accepted", http.post("/v1/feedback", json=feedback).json())
    for path, schema in (("model", "Model"), ("status", "Status"), ("events", "Events")):
        conforms(document, schema, http.get(f"/v1/{path}").json())
    conforms(document, "Problem", http.get("/nowhere").json())
    for path, calls in document["paths"].items():
        for call in calls.values():
            content = call["responses"]["200"]["content"].get("application/json", {})
            if "example" in content:
                schema = content["schema"]["$ref"].rsplit("/", 1)[1]
                conforms(document, schema, content["example"])
            asked = call.get("requestBody", {}).get("content", {}).get("application/json")
            if asked:
                jsonschema.validate(asked["example"], {**asked["schema"], "components": document["components"]})
            assert call["responses"]["500"], path


def test_the_page_lists_the_calls_and_loads_nothing_from_elsewhere(
    document: dict[str, Any], shared_server: Server
) -> None:
    answer = shared_server.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    for path in document["paths"]:
        assert f" {path}</code>" in answer.text
    assert not re.search(r"<script|<link|<img|@import|url\(|https?:", answer.text)
    assert set(re.findall(r'(?:href|src)="([^"]*)"', answer.text)) == {"/docs.json"}
    assert shared_server.http.head("/").content == b""
    refused = shared_server.http.post("/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    served = shared_server.http.get("/docs.json").json()
    assert served["paths"].keys() == document["paths"].keys()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server with a key for every scope, and the one that opens all."""
    world = make_world(tmp_path_factory.mktemp("target") / "home")
    world.publish_live()
    world.publish(("cyan", "magenta", "yellow"))
    made = {scope: new_key() for scope in ("predict", "feedback", "admin")}
    entries = [{"name": scope, "scopes": [scope], "sha256": digest_of(key)} for scope, key in made.items()]
    with serving(world, extra={"PERENNIAL_SERVE__KEYS": json.dumps(entries)}) as server:
        yield server, made["admin"]


@pytest.mark.parametrize(
    "options",
    [
        # What a model accepts is not in a schema: how many classes it has, which ids it gave out, what is an image.
        ("--exclude-path", "/v1/predict/batch", "--exclude-checks", "positive_data_acceptance"),
        # And here every part of a form is an image that fails alone, whatever its bytes are.
        ("--include-path", "/v1/predict/batch", "--exclude-checks", "positive_data_acceptance,negative_data_rejection"),
    ],
    ids=["all calls", "a batch"],
)
def test_schemathesis_finds_nothing(target: tuple[Server, str], tmp_path: Path, options: tuple[str, ...]) -> None:
    server, key = target
    workers = server.workers()
    assert workers
    run = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/docs.json", "--header",
            f"Authorization: Bearer {key}", "--checks", "all", *options, "--max-examples", "20", "--seed", "1",
            "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure", "--no-color",
        ],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_images", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"(\d{2,}) generated, \1 passed", run.stdout), run.stdout[-2000:]
    assert server.workers() == workers
    assert "Traceback" not in server.output()
