from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from perennial.bundle import Bundle, Dataset, Manifest, Pretrained, write_bundle
from perennial.images import InputRule
from perennial.storage import Storage


@pytest.fixture
def s3_storage(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A bucket of its own on the real S3 endpoint."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1")
    storage = Storage(f"s3://bucket-{time.time_ns()}")
    storage._files.mkdir(storage._root)
    yield storage
    type(storage._files).clear_instance_cache()


MakeBundle = Callable[[str], Bundle]


@pytest.fixture
def made_bundle(tmp_path: Path) -> MakeBundle:
    """Writes a small valid bundle of a given version."""

    def make(version: str) -> Bundle:
        return write_bundle(tmp_path / "bundles", manifest(version), fill)

    return make


def manifest(version: str = "20260101-000000-00000") -> Manifest:
    return Manifest(
        name="shapes",
        version=version,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        classes=("disc", "square"),
        input=InputRule(resize=32, crop=32),
        backbone="mobilenet_v3_small",
        pretrained=Pretrained(source="builtin", sha256="0" * 64),
        strategy="linear_probe",
        why="a test",
        dataset=Dataset(location="nowhere", fingerprint="f", train=2, validation=1, test=1),
        metrics={},
        per_class={},
        temperature=1.0,
        properties=("brightness",),
        precisions=("float32",),
        seed=0,
        packages={},
    )


def fill(folder: Path) -> None:
    (folder / "graph.onnx").write_bytes(b"a graph" * 100)
    (folder / "weights.safetensors").write_bytes(b"weights" * 100)
    (folder / "reference.parquet").write_bytes(b"rows")
