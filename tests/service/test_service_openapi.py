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

from perennial import overview
from perennial.json_body import json_body
from perennial.ledger import rollouts
from perennial.settings import load_settings
from perennial.settings_sections import ReadPath
from service import openapi, problems
from service.keys import SCOPES, digest_of, new_key
from service.ops.page import ASSETS
from tests.service.conftest import Server, make_world, picture, serving
from tests.service.ops_story import begin, drifting, grown

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


def exactly(schema: Any) -> Any:
    """Such that an object has the properties that are described, and no other."""
    if isinstance(schema, list):
        return [exactly(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {key: exactly(value) for key, value in schema.items()}


def conforms(document: dict[str, Any], schema: Any, answer: Any) -> None:
    """An answer has what a schema says (a name, or a schema) and nothing else; the two that pass on what a bundle and a
    check hold may have more."""
    schemas = document["components"]["schemas"]
    components = {"schemas": {**exactly(schemas), **{name: schemas[name] for name in ("Model", "Status")}}}
    wanted = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    jsonschema.validate(answer, {**wanted, "components": components}, format_checker=jsonschema.FormatChecker())


def resolved(document: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    for part in found["$ref"].split("/")[1:] if "$ref" in found else ():
        document = document[part]
    return document if "$ref" in found else found


def test_answers_are_what_it_says(document: dict[str, Any], shared_server: Server) -> None:
    http = shared_server.http
    prediction = shared_server.predict(picture("red"))
    conforms(document, "Prediction", prediction)
    parts = [("images", picture("green")), ("images", b"no image")]
    conforms(document, "Batch", http.post("/v1/predict/batch", files=parts).json())
    feedback = [{"prediction_id": "unknown", "label": "red"}]
    conforms(document, "Accepted", http.post("/v1/feedback", json=feedback).json())
    reads = {"model": "Model", "status": "Status", "events": "Events", "overview": "Overview"}
    for path, schema in {**reads, "labels/queue": "LabelsQueue"}.items():
        conforms(document, schema, http.get(f"/v1/{path}").json())
    conforms(document, "Problem", http.get("/nowhere").json())


def test_an_overview_is_exactly_what_it_says_in_every_state(document: dict[str, Any], tmp_path: Path) -> None:
    world = make_world(tmp_path / "home")
    story = begin(world)
    keys = {"read": True, "predict": True, "feedback": False, "admin": True}

    def told() -> dict[str, Any]:
        read = {**overview.read(world.engine, world.settings, 24), "needs_key": keys}
        found: dict[str, Any] = json.loads(json_body(read))
        conforms(document, "Overview", found)
        return found

    assert told()["live"] is None
    live, other = grown(story)
    assert told()["check"] is not None
    examples = story.examples(live, ["01a1fb77-194f-7ebc-b7bf-c270089afb4e"])
    drifting(story, live, examples)
    assert told()["check"]["examples"][0]["nearest"][0]["image"].startswith("/v1/references/")
    story.deploy(other, story.now, reason="better", actor="watch")
    found = told()
    assert (found["watch"]["compared_with"], found["check"]["verdict"]) == (live, "ok")
    rollouts.start(
        world.engine, story.name, champion=other, challenger=live, stages=("shadow", 0.5), reason="r", actor="a"
    )
    assert told()["rollout"]["agreed"] == 0
    world.engine.dispose()
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        conforms(document, "Overview", {**found, "surprise": 1})


def test_every_call_has_examples_of_all_it_takes_and_answers(document: dict[str, Any]) -> None:
    files = {"text/html", "image/jpeg", "image/svg+xml", "text/javascript", "text/css"}
    for path, calls in document["paths"].items():
        for call in calls.values():
            taken = call.get("requestBody", {}).get("content", {})
            if "application/json" in taken:
                conforms(document, taken["application/json"]["schema"], taken["application/json"]["example"])
            elif taken:
                [sample] = call["x-codeSamples"]
                assert re.search(rf"^curl .*@photo\.jpg .*http://127\.0\.0\.1:3000{path}\b", sample["source"])
            for status, response in call["responses"].items():
                response = resolved(document, response)
                for media, described in response.get("content", {}).items():
                    if status == "200":
                        assert "example" in described or media in files, (path, media)
                        if "example" in described:
                            conforms(document, described["schema"], described["example"])
                        continue
                    assert described["examples"], (path, status)
                    for slug, example in described["examples"].items():
                        problem = resolved(document, example)["value"]
                        conforms(document, "Problem", problem)
                        assert (problem["type"], str(problem["status"])) == (f"{problems.URN}{slug}", status)
            assert {"200", "400", "403", "414", "431", "500"} <= call["responses"].keys(), path


@pytest.mark.parametrize(
    ("method", "path", "body", "slug"),
    [
        ("POST", "/v1/predict", {"content": b""}, "empty-image"),
        ("POST", "/v1/predict", {"content": b"no image"}, "invalid-image"),
        ("POST", "/v1/predict", {"content": picture("red")[:-40]}, "truncated-image"),
        ("POST", "/v1/predict?top=0", {"content": picture("red")}, "invalid-parameter"),
        ("POST", "/v1/predict/batch", {"content": b"x"}, "invalid-parameter"),
        ("POST", "/v1/feedback", {"json": {"prediction_id": "x", "label": "red"}}, "unknown-prediction"),
        ("POST", "/v1/feedback", {"json": 3}, "invalid-parameter"),
        ("GET", "/v1/overview?hours=0", {}, "invalid-parameter"),
        ("GET", "/v1/images/{prediction_id}", {}, "unknown-picture"),
        ("GET", "/v1/references/{version}/{digest}", {}, "unknown-picture"),
        ("POST", "/v1/models/{version}/promote", {"json": {"reason": "r"}}, "unknown-model"),
        ("POST", "/v1/rollback", {"json": {"reason": "r"}}, "nothing-to-do"),
    ],
)
def test_a_problem_is_one_of_those_that_it_names(
    document: dict[str, Any], shared_server: Server, method: str, path: str, body: dict[str, Any], slug: str
) -> None:
    answer = shared_server.http.request(method, re.sub(r"\{\w+\}", "none", path), **body)
    conforms(document, "Problem", answer.json())
    assert answer.json()["type"] == f"{problems.URN}{slug}"
    call = document["paths"][path.split("?")[0]][method.lower()]
    named = resolved(document, call["responses"][str(answer.status_code)])
    assert slug in named["content"][problems.MEDIA_TYPE]["examples"]


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
    served = shared_server.http.get("/docs.json")
    assert served.json()["paths"].keys() == document["paths"].keys()
    assert len(served.content) < 100_000
    again = shared_server.http.get("/docs.json", headers={"If-None-Match": served.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


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
