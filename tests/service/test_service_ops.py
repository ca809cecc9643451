"""What the operations page reads over HTTP: the overview, small pictures, what to label next, and the page's files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from perennial.settings import load_settings
from perennial.storage import reference_key
from perennial.thumbnails import thumbnail
from service.ops.overview import Overview
from service.ops.page import ASSETS, pages
from service.ops.pictures import SIDE
from tests.service.conftest import Server, make_world, picture, serving, wait


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, which has captured forty images."""
    world = make_world(tmp_path_factory.mktemp("ops"))
    world.publish_live()
    with serving(world) as running:
        for seed in range(40):
            running.predict(picture(("red", "green", "blue")[seed % 3], seed=seed))
        assert wait(lambda: len(running.http.get("/v1/labels/queue?count=100").json()["images"]) == 40, 20)
        yield running


def test_the_overview_has_what_came_in_and_says_nothing_twice(server: Server) -> None:
    found = server.http.get("/v1/overview")
    document = found.json()
    assert document["live"]["version"] == server.http.get("/v1/model").json()["version"]
    assert sum(document["traffic"]["answered"]) == 40
    assert document["needs_key"] == {"read": False, "predict": False, "feedback": False, "admin": False}
    again = server.http.get("/v1/overview", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert len(server.http.get("/v1/overview?hours=6").json()["traffic"]["answered"]) == 180


def test_reading_the_overview_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, read = 100.0, list[tuple[float, int]]()

    def slow(_engine: object, _settings: object, hours: int, **_: object) -> dict[str, Any]:
        nonlocal now
        read.append((now, hours))
        now += 0.05
        return {"at": str(now), "state": {"sentence": ""}}

    monkeypatch.setattr("perennial.overview.read", slow)
    kept = Overview(load_settings(), {}, clock=lambda: now, processor=lambda: now)
    engine = sa.create_engine("sqlite://")
    for spans in ([24], [24, 168, 720]):
        read.clear()
        began = now
        while now < began + 120:  # ten pages, each asks every five seconds
            kept.get(engine, spans[len(read) % len(spans)])
            now += 0.5
        share = 0.05 * len(read) / (now - began)
        assert 0.015 < share <= 0.026
    now, seen = now + 1.5, len(read)
    kept.get(engine, read[-1][1], anew=True)
    assert len(read) == seen + 1  # the others would have been given the one that is kept
    kept.get(engine, read[-1][1], anew=True)
    assert len(read) == seen + 1  # a second is as new as it gets


@pytest.mark.parametrize("path", ["overview?hours=0", "overview?hours=721", "overview?hours=x", "labels/queue?count=0"])
def test_a_number_out_of_bounds_is_said_so(server: Server, path: str) -> None:
    answer = server.http.get(f"/v1/{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_a_captured_image_comes_as_a_small_picture(server: Server) -> None:
    prediction = server.predict(picture("green", seed=1))["prediction_id"]
    assert wait(lambda: server.http.get(f"/v1/images/{prediction}").status_code == 200, 20)
    answer = server.http.get(f"/v1/images/{prediction}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "private" in answer.headers["cache-control"]
    image = Image.open(io.BytesIO(answer.content))
    assert max(image.size) <= SIDE
    red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert green > max(red, blue)


@pytest.mark.parametrize(
    "path", ["images/00000000-0000-7000-8000-000000000000", "images/x", f"references/v/{'0' * 64}", "references/v/x"]
)
def test_a_picture_that_is_not_there_is_a_404(server: Server, path: str) -> None:
    answer = server.http.get(f"/v1/{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:perennial:problem:unknown-picture")


def test_a_picture_whose_image_is_gone_is_a_404(server: Server) -> None:
    prediction = server.predict(picture("blue", seed=77))["prediction_id"]
    assert wait(lambda: server.http.get(f"/v1/images/{prediction}").status_code == 200, 20)
    digest = hashlib.sha256(picture("blue", seed=77)).hexdigest()
    [kept] = [path for path in (server.world.home / "storage" / "captures").rglob("*") if path.stem == digest]
    kept.unlink()
    assert server.http.get(f"/v1/images/{prediction}").status_code == 404


def test_a_reference_image_that_a_check_has_shown(server: Server) -> None:
    storage, name = server.world.storage, server.world.settings.name
    jpeg = thumbnail(np.full((64, 64, 3), 200, np.uint8))
    storage.write(reference_key(name, "v1", "a" * 64), jpeg)
    storage.write(reference_key(name, "v1", "b" * 64), b"<script>")
    answer = server.http.get(f"/v1/references/v1/{'a' * 64}")
    assert (answer.status_code, answer.content) == (200, jpeg)
    assert server.http.get(f"/v1/references/v1/{'b' * 64}").status_code == 404


def test_the_queue_names_half_at_random_and_half_in_doubt_and_forgets_what_has_a_label(server: Server) -> None:
    queue = server.http.get("/v1/labels/queue?count=100").json()
    everything = queue["images"]
    assert queue["classes"] == ["red", "green", "blue"]
    assert len({image["prediction_id"] for image in everything}) == len(everything)
    some = server.http.get("/v1/labels/queue?count=10").json()["images"]
    assert [image["chosen"] for image in some] == ["random", "informative"] * 5
    unsure = sorted(everything, key=lambda image: image["confidence"])
    informative = [image["confidence"] for image in some if image["chosen"] == "informative"]
    assert max(informative) <= unsure[9]["confidence"]
    first = some[0]
    answer = server.http.post("/v1/feedback", json={"prediction_id": first["prediction_id"], "label": "red"})
    assert answer.json()["accepted"] == 1
    left = server.http.get("/v1/labels/queue?count=100").json()["images"]
    assert first["prediction_id"] not in {image["prediction_id"] for image in left}
    assert len(left) == len(everything) - 1


def test_the_page_and_its_files_let_nothing_else_in(server: Server) -> None:
    for path, (file, media_type, _) in ASSETS.items():
        answer = server.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == media_type
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = server.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), file
    assert server.http.get("/ops/../service/app.py").status_code == 404
    assert server.http.get("/ops/ops.html").status_code == 404


def test_every_file_beside_the_page_is_given_or_is_a_licence() -> None:
    folder = Path(__file__).parents[2] / "service" / "ops" / "assets"
    assert {path.name for path in folder.iterdir() if path.suffix != ".LICENSE"} == {
        name for name, *_ in ASSETS.values()
    }
    assert all(len(page.body) < 200_000 for page in pages().values())
