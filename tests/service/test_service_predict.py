"""Images in, predictions out, against a real server process."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from perennial.ledger import predictions
from tests.service.conftest import Server, picture

PROBLEM = "application/problem+json"


def problem(answer: httpx.Response, status: int, slug: str) -> str:
    """Asserts that an answer is this problem and returns its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith(PROBLEM)
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["type"].endswith(f":{slug}"), body
    assert "Traceback" not in answer.text
    return str(body["detail"])


def huge_png_header(width: int = 20_000, height: int = 10_000) -> bytes:
    """A PNG of 200 megapixels that is 57 bytes long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_raw_body_is_classified_and_recorded(shared_server: Server) -> None:
    version = next(iter(shared_server.world.classes))
    image = picture("blue", size=(640, 480))
    answer = shared_server.predict(image)
    assert answer["label"] == "blue"
    assert answer["model"] == {"name": "colours", "version": version}
    assert answer["confidence"] == answer["top"][0]["probability"] > 0.99
    assert answer["top"][0]["label"] == "blue"
    assert len(answer["top"]) == 3
    assert sum(entry["probability"] for entry in answer["top"]) == pytest.approx(1, abs=1e-4)

    rows = shared_server.world.latest(version, 1000)
    row = next(row.prediction for row in rows if row.prediction.id == answer["prediction_id"])
    assert (row.label, row.width, row.height, row.format, row.mode) == ("blue", 640, 480, "JPEG", "RGB")
    assert row.bytes == len(image)
    assert row.precision == "float32"
    assert row.probabilities.shape == (3,)
    assert row.embedding.shape == (4,)
    assert row.properties.shape == (7,)
    assert row.source is None


def test_a_multipart_field_gives_the_same_prediction(shared_server: Server) -> None:
    image = picture("green")
    raw = shared_server.predict(image)
    form = shared_server.http.post("/v1/predict", files={"image": ("leaf.jpg", image)}, data={"source": "camera 7"})
    assert form.status_code == 200, form.text
    assert (form.json()["label"], form.json()["top"]) == (raw["label"], raw["top"])
    assert form.json()["prediction_id"] > raw["prediction_id"]


@pytest.mark.parametrize("sent", ["header", "field"])
def test_the_source_of_an_image_is_kept(shared_server: Server, sent: str) -> None:
    source = f"Straße-3/{sent}"
    if sent == "header":
        answer = shared_server.http.post("/v1/predict", content=picture("red"), headers={"X-Source": source.encode()})
    else:
        files = {"image": ("a.jpg", picture("red"))}
        answer = shared_server.http.post("/v1/predict", files=files, data={"source": source})
    version = answer.json()["model"]["version"]
    rows = shared_server.world.latest(version, 1000)
    assert [row.prediction.source for row in rows if row.prediction.id == answer.json()["prediction_id"]] == [source]


def test_a_source_that_is_too_long_is_refused(shared_server: Server) -> None:
    problem(shared_server.post("/v1/predict", picture("red"), **{"X-Source": "x" * 201}), 422, "invalid-parameter")


@pytest.mark.parametrize(
    "kind",
    ["JPEG CMYK", "PNG RGBA", "PNG P", "PNG I;16", "PNG L", "PNG LA", "WEBP RGB", "GIF P", "BMP RGB", "TIFF RGB"],
)
def test_every_format_and_mode_is_read(shared_server: Server, kind: str) -> None:
    form, mode = kind.split()
    image = Image.fromarray(np.full((48, 48), 60_000, dtype=np.uint16))
    if mode != "I;16":
        image = Image.new("RGB", (48, 48), "red").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    answer = shared_server.predict(buffer.getvalue())
    if mode in ("CMYK", "RGBA", "P", "RGB"):
        assert answer["label"] == "red"


def test_a_png_named_jpeg_is_read_by_its_bytes(shared_server: Server) -> None:
    files = {"image": ("photo.jpg", picture("green", "PNG"), "image/jpeg")}
    answer = shared_server.http.post("/v1/predict", files=files)
    assert answer.status_code == 200
    assert answer.json()["label"] == "green"


def test_a_truncated_jpeg_fails_alone_beside_fifteen_good_ones(shared_server: Server) -> None:
    before = shared_server.world.rows()
    images = [picture(("red", "green", "blue")[index % 3], seed=index) for index in range(16)]
    images[5] = images[5][: len(images[5]) // 2]
    files = [("images", (f"{index}.jpg", image)) for index, image in enumerate(images)]
    answer = shared_server.http.post("/v1/predict/batch", files=files)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == 16
    assert results[5]["error"]["type"].endswith(":truncated-image")
    assert results[5]["error"]["status"] == 400
    good = [result for index, result in enumerate(results) if index != 5]
    assert [result["label"] for result in good] == [("red", "green", "blue")[i % 3] for i in range(16) if i != 5]
    assert len({result["prediction_id"] for result in good}) == 15
    assert shared_server.world.rows() == before + 15


def test_a_batch_of_bad_images_is_answered_one_by_one(shared_server: Server) -> None:
    files = [("images", ("a", b"")), ("images", ("b", b"text")), ("images", ("c", b"x" * (32 * 2**20 + 1)))]
    answer = shared_server.http.post("/v1/predict/batch", files=files)
    assert answer.status_code == 200
    assert [result["error"]["status"] for result in answer.json()["results"]] == [400, 400, 413]


def test_a_batch_has_a_size(shared_server: Server) -> None:
    files = [("images", (f"{index}.jpg", picture("red"))) for index in range(21)]
    assert "20" in problem(shared_server.http.post("/v1/predict/batch", files=files), 422, "invalid-parameter")


def test_a_batch_that_is_not_a_form_is_refused(shared_server: Server) -> None:
    problem(shared_server.post("/v1/predict/batch", picture("red")), 422, "invalid-parameter")
    no_images = shared_server.http.post("/v1/predict/batch", files={"picture": ("a.jpg", picture("red"))})
    assert "`images`" in problem(no_images, 422, "invalid-parameter")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"this is a text file, not an image\n" * 20, 400, "invalid-image"),
        (b"", 400, "empty-image"),
        (picture("red", seed=1)[:-500], 400, "truncated-image"),
        (huge_png_header(), 413, "too-many-pixels"),
        (b"\x00" * 50_000_000, 413, "too-many-bytes"),
        (b"\x00\x00\x00\x18ftypheic" + b"\x00" * 200, 415, "unsupported-image-format"),
        (b"%PDF-1.7 and so on" * 20, 415, "unsupported-image-format"),
        (b"http://127.0.0.1:1/secret", 400, "invalid-image"),
    ],
    ids=["text", "empty", "truncated", "200 megapixels", "50 MB of zeros", "heic", "pdf", "url"],
)
def test_each_bad_body_has_its_own_status_and_message(
    shared_server: Server, body: bytes, status: int, slug: str
) -> None:
    before = shared_server.world.rows()
    assert problem(shared_server.post("/v1/predict", body), status, slug)
    assert shared_server.world.rows() == before
    assert shared_server.predict(picture("red"))["label"] == "red"


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(shared_server: Server) -> None:
    before = shared_server.world.rows()
    body = (bytes(2**20) for _ in range(50))
    assert problem(shared_server.http.post("/v1/predict", content=body), 413, "too-many-bytes")
    assert shared_server.world.rows() == before


def test_a_url_in_place_of_an_image_is_never_fetched(shared_server: Server) -> None:
    url = f"{shared_server.url}/livez"
    for path, field in (("/v1/predict", "image"), ("/v1/predict/batch", "images"), ("/classify", "image")):
        answer = shared_server.http.post(path, files={"other": ("a", b"a")}, data={field: url})
        assert "text" in problem(answer, 422, "invalid-parameter")


@pytest.mark.parametrize("top", ["0", "4", "-1", "1.5", "x", "", "9" * 30, "٣"])
def test_top_outside_the_number_of_classes_is_refused(shared_server: Server, top: str) -> None:
    answer = shared_server.http.post("/v1/predict", params={"top": top}, content=picture("red"))
    assert "from 1 to 3" in problem(answer, 422, "invalid-parameter")


def test_top_says_how_many_classes_are_listed(shared_server: Server) -> None:
    answer = shared_server.http.post("/v1/predict?top=1", content=picture("red"))
    assert len(answer.json()["top"]) == 1


def test_the_wrong_method_is_a_problem_that_names_the_right_one(shared_server: Server) -> None:
    answer = shared_server.http.get("/v1/predict")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    problem(shared_server.http.get("/classify"), 405, "method-not-allowed")
    problem(shared_server.http.put("/livez"), 405, "method-not-allowed")


def test_an_unknown_path_is_a_problem_and_makes_no_metric(shared_server: Server) -> None:
    for index in range(20):
        problem(shared_server.http.get(f"/wp-admin/{index}"), 404, "unknown-path")
        problem(shared_server.http.get(f"/static_content/{index}"), 404, "unknown-path")
        promote = shared_server.http.post(f"/v1/models/made-up-{index}/promote", json={"reason": "curious"})
        problem(promote, 404, "unknown-model")
    shared_server.predict(picture("red"))
    text = shared_server.http.get("/metrics").text
    assert "wp-admin" not in text
    assert "made-up" not in text
    assert "static_content/1" not in text
    assert 'endpoint="/v1/models/{version}/promote"' in text
    assert 'perennial_rejected_total{reason="unknown-path"}' in text


def test_the_metrics_of_the_service_are_there(shared_server: Server) -> None:
    version = shared_server.predict(picture("red"))["model"]["version"]
    assert shared_server.http.get("/v1/model").status_code == 200  # BentoML counts every call but the prediction
    shared_server.world.settle()  # on a busy machine the row may still be on its way, and be counted as pending
    text = shared_server.http.get("/metrics").text
    for line in (
        f'perennial_predictions_total{{label="red",model_version="{version}"}}',
        "perennial_confidence_bucket",
        'perennial_stage_seconds_bucket{le="0.001",stage="decode"}',
        'stage="queue"',
        'stage="infer"',
        'stage="record"',
        "perennial_batch_images_bucket",
        f'perennial_live_model_info{{precision="float32",runtime="openvino",version="{version}"}} 1.0',
        'perennial_swaps_total{outcome="done"}',
        "perennial_recorder_pending_rows 0.0",
        'bentoml_service_request_total{endpoint="/v1/model"',
    ):
        assert line in text, line


def test_a_request_id_comes_back(shared_server: Server) -> None:
    answer = shared_server.post("/v1/predict", picture("red"), **{"X-Request-ID": "order-17.a"})
    assert answer.headers["x-request-id"] == "order-17.a"
    assert shared_server.http.get("/nowhere", headers={"X-Request-ID": "b-1"}).headers["x-request-id"] == "b-1"
    made = {shared_server.http.get("/livez").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    forged = shared_server.post("/v1/predict", picture("red"), **{"X-Request-ID": "x" * 500})
    assert forged.headers["x-request-id"] != "x" * 500


def test_an_image_is_captured_once_for_all_its_copies(shared_server: Server) -> None:
    image = picture("red", seed=4711)
    ids = {shared_server.predict(image)["prediction_id"] for _ in range(3)}
    world = shared_server.world
    rows = [row.prediction for row in world.latest(next(iter(world.classes)), 1000)]
    mine = [row for row in rows if row.id in ids]
    assert len(mine) == 3
    assert len({row.image_url for row in mine}) == 1
    url = mine[0].image_url
    assert url is not None
    assert world.storage.read(world.storage.key_of(url)) == image
    kept = list((world.home / "storage" / "captures").rglob(f"{mine[0].image_digest}*"))
    assert len(kept) == 1


def test_ids_grow_in_the_order_of_the_answers(shared_server: Server) -> None:
    ids = [shared_server.predict(picture("red"))["prediction_id"] for _ in range(10)]
    assert ids == sorted(ids)


def test_the_model_card_says_what_is_live_and_no_path_of_the_trainer(shared_server: Server) -> None:
    answer = shared_server.http.get("/v1/model")
    card = answer.json()
    assert card["classes"] == ["red", "green", "blue"]
    assert card["metrics"]["accuracy"] == {"value": 0.9, "low": 0.8, "high": 0.95}
    assert card["pretrained"] == {"source": "roots.safetensors", "sha256": "0" * 64}
    assert card["reason"] == "a test"
    assert card["findings"] == [{"kind": "near_duplicates"}]
    assert {"trained_at", "deployed_at", "backbone", "strategy", "version"} <= set(card)
    assert "/somewhere/private" not in answer.text
    assert "/home/somebody" not in answer.text


BENTOS_CLIENT = """
import json, sys
from pathlib import Path
import bentoml
with bentoml.SyncHTTPClient(sys.argv[1]) as client:
    for path in sys.argv[2:]:
        try:
            print(json.dumps(client.classify(image=Path(path))))
        except bentoml.exceptions.BentoMLException as error:
            print(json.dumps({"status": error.error_code, "text": str(error)}))
"""


def test_bentos_own_client_classifies_files_and_is_told_which_are_no_images(
    shared_server: Server, tmp_path: Path
) -> None:
    # In a process of its own: the client leaves a temporary folder open and uses what is going out of use.
    contents = {"leaf.png": picture("green", "PNG"), "text.png": b"garbage", "empty.jpg": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", BENTOS_CLIENT, shared_server.url, *(str(tmp_path / name) for name in contents)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    leaf, text, empty = (json.loads(line) for line in run.stdout.splitlines())
    assert leaf["label"] == "green"
    assert leaf["prediction_id"] in predictions.known(shared_server.world.engine, [leaf["prediction_id"]])
    assert text["status"] == empty["status"] == 400
    assert "invalid-image" in text["text"]
    assert "empty-image" in empty["text"]


def test_classify_is_bounded_like_predict(shared_server: Server) -> None:
    problem(shared_server.post("/classify", b"\x00" * 50_000_000), 413, "too-many-bytes")
    as_json = shared_server.http.post("/classify", json={"image": f"{shared_server.url}/livez"})
    problem(as_json, 400, "invalid-image")


def test_the_schema_lists_classify(shared_server: Server) -> None:
    schema = shared_server.http.get("/docs.json").json()
    assert "/classify" in schema["paths"]
