"""A real model certified in every precision this processor has; the monitor does not take one for drift of another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from sklearn.datasets import load_digits

from monitoring.check import run_check
from monitoring.window import read_reference
from perennial import ledger
from perennial.bundle import Bundle, open_bundle, upload_bundle
from perennial.errors import InvalidBundle
from perennial.graph import BFLOAT16, FLOAT32, OPENVINO, Graph, GraphOutput, available_precisions
from perennial.ids import new_id
from perennial.images import ImageLimits, Pixels, prepare
from perennial.ledger import open_ledger
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage, sha256
from training import datasets
from training.fit import FitRequest, fit

DIGITS = (0, 1, 4, 7)
SIDE = 64
PRECISIONS = available_precisions(OPENVINO)
needs_bfloat16 = pytest.mark.skipif(BFLOAT16 not in PRECISIONS, reason="this processor has no bfloat16")


@dataclass(frozen=True)
class Digits:
    """A model of four handwritten digits, and images of them that it has not seen: `pixels` [N, 64, 64, 3]."""

    bundle: Bundle
    pixels: Pixels
    sha256s: tuple[str, ...]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("precise")
    data = load_digits()
    chosen = np.flatnonzero(np.isin(data.target, DIGITS))
    files = []
    for at in np.random.default_rng(0).permutation(chosen):
        training = len(files) < 420
        path = folder / ("data" if training else "traffic") / str(data.target[at]) / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[at] * 15.9).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC).save(path)
        files.append(path)
    images = datasets.load(str(folder / "data"), validation=0.15, test=0.5, seed=0)
    request = FitRequest(
        images, "digits", "mobilenet_v3_small", "builtin", "linear_probe", SIDE, seed=0, threads=1, int8=True
    )
    bundle = fit(request, bundles=folder / "models", cache=folder / "cache", limits=ImageLimits()).bundle
    sent = [path.read_bytes() for path in files[420:]]
    pixels = np.stack([prepare(each, bundle.manifest.input, ImageLimits()).pixels for each in sent])
    return Digits(bundle, pixels, tuple(sha256(each) for each in sent))


@pytest.fixture
def watched(home: Path) -> Settings:
    return load_settings(name="digits", monitor={"window": 250, "min_rows": 120})


@pytest.fixture
def live(watched: Settings, digits: Digits) -> Iterator[sa.Engine]:
    """A ledger in which the model is live."""
    engine = open_ledger(watched.ledger_url)
    ledger.models.register(engine, digits.bundle, upload_bundle(digits.bundle, Storage(watched.blobs_url)))
    version = digits.bundle.manifest.version
    ledger.deployments.deploy(engine, "digits", version, reason="a test", actor="test")
    yield engine
    engine.dispose()


def answered(bundle: Bundle, precision: str, pixels: Pixels) -> GraphOutput:
    return Graph(bundle.graph_in(precision), threads=1, precision=precision).run(pixels)


def record(engine: sa.Engine, digits: Digits, rows: Sequence[int], precision: str) -> None:
    """What the service writes when it serves these images in a precision."""
    manifest = digits.bundle.manifest
    output = answered(digits.bundle, precision, digits.pixels[list(rows)])
    start = datetime.now(UTC)
    ledger.predictions.record(
        engine,
        [
            Prediction(
                id=new_id(),
                at=start + timedelta(milliseconds=at),
                model_version=manifest.version,
                precision=precision,
                label=manifest.classes[int(output.probabilities[at].argmax())],
                confidence=float(output.probabilities[at].max()),
                probabilities=output.probabilities[at],
                embedding=output.embedding[at],
                properties=output.properties[at],
                width=32,
                height=32,
                format="PNG",
                mode="L",
                bytes=100,
                image_digest=digits.sha256s[row],
                image_url=None,
                source=None,
                latency_ms=1.0,
            )
            for at, row in enumerate(rows)
        ],
    )


def test_each_precision_is_certified_with_reference_rows_of_its_own(digits: Digits) -> None:
    manifest = digits.bundle.manifest
    assert manifest.precisions == PRECISIONS
    assert {"graph-int8.xml", "graph-int8.bin", "reference-int8.parquet"} <= set(manifest.files)
    for precision in PRECISIONS:
        found = manifest.certificates[precision]
        assert found.certified
        assert found.agreement.value >= found.least_agreement
        reference = read_reference(digits.bundle, precision)
        assert reference is not None
        assert len(reference.unseen) >= 200


def test_a_changed_int8_graph_does_not_verify(digits: Digits, tmp_path: Path) -> None:
    copy = shutil.copytree(digits.bundle.path, tmp_path / "copy")
    weights = copy / "graph-int8.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InvalidBundle, match=r"graph-int8\.bin was changed"):
        open_bundle(copy)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_clean_rows_of_any_certified_precision_are_ok(
    live: sa.Engine, watched: Settings, digits: Digits, precision: str
) -> None:
    record(live, digits, range(len(digits.pixels)), precision)
    check = run_check(live, watched)
    assert (check.verdict, check.precision) == ("ok", precision), check.causes
    assert set(check.families) >= {"properties", "output", "class_mix", "embedding"}


@needs_bfloat16
def test_a_change_of_precision_in_mid_stream_is_no_drift(live: sa.Engine, watched: Settings, digits: Digits) -> None:
    half = len(digits.pixels) // 2
    record(live, digits, range(half), FLOAT32)
    record(live, digits, range(half, len(digits.pixels)), BFLOAT16)
    check = run_check(live, watched.model_copy(update={"monitor": watched.monitor.model_copy(update={"min_rows": 80})}))
    assert (check.verdict, check.precision) == ("ok", BFLOAT16), check.causes
    assert check.rows == len(digits.pixels) - half
    assert [event.kind for event in ledger.events.after(live, "digits")] == ["deployed", "check_changed"]


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != FLOAT32])
def test_across_precisions_the_same_images_would_have_moved(digits: Digits, precision: str) -> None:
    exact, short = (answered(digits.bundle, each, digits.pixels) for each in (FLOAT32, precision))
    moved = short.embedding - exact.embedding
    # Not noise about zero: components move one way, by many standard errors. Enough rows would make it "drift".
    errors = moved.std(axis=0) / np.sqrt(len(moved))
    assert np.abs(moved.mean(axis=0) / errors).max() > 5
    again = answered(digits.bundle, precision, digits.pixels)
    assert np.array_equal(again.embedding, short.embedding), "within a precision nothing moves at all"
    assert np.allclose(exact.properties, short.properties, atol=1e-5), "the properties are float32 in each"
