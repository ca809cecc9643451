"""A bundle is written whole, and nothing that does not verify is ever opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.bundle import Bundle, fetch_bundle, new_version, open_bundle, upload_bundle, write_bundle
from perennial.errors import InvalidBundle, StorageUnavailable
from perennial.storage import Storage


@pytest.fixture
def bundle(made_bundle: Callable[[str], Bundle]) -> Bundle:
    return made_bundle("20260101-000000-00000")


def test_a_bundle_comes_back_as_it_was_written(bundle: Bundle) -> None:
    again = open_bundle(bundle.path, bundle.digest)
    assert again.manifest == bundle.manifest
    assert set(again.manifest.files) == {"graph.onnx", "weights.safetensors", "reference.parquet"}
    assert again.graph.read_bytes() == b"a graph" * 100


def test_writing_that_fails_leaves_nothing_behind(bundle: Bundle, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "graph.onnx").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_bundle(tmp_path / "others", bundle.manifest, fail)
    assert list((tmp_path / "others").iterdir()) == []


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors", "reference.parquet"])
def test_one_changed_byte_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidBundle, match=f"{name} was changed"):
        open_bundle(bundle.path)


def test_a_changed_manifest_is_found_by_the_ledgers_digest(bundle: Bundle) -> None:
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    document["classes"] = ["square", "disc"]
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidBundle, match="the ledger says"):
        open_bundle(bundle.path, bundle.digest)


@pytest.mark.parametrize("change", ["missing", "extra", "link", "no manifest", "not json", "newer", "unknown field"])
def test_what_is_not_a_whole_bundle_is_refused(bundle: Bundle, change: str) -> None:
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    if change == "missing":
        bundle.weights.unlink()
    elif change == "extra":
        (bundle.path / "surprise.pkl").write_bytes(b"x")
    elif change == "link":
        elsewhere = bundle.path.parent / "elsewhere"
        elsewhere.write_bytes(bundle.graph.read_bytes())
        bundle.graph.unlink()
        os.symlink(elsewhere, bundle.graph)
    elif change == "no manifest":
        path.unlink()
    elif change == "not json":
        path.write_text("{")
    elif change == "newer":
        path.write_text(json.dumps(document | {"schema_number": 99}))
    else:
        path.write_text(json.dumps(document | {"surprise": 1}))
    with pytest.raises(InvalidBundle):
        open_bundle(bundle.path)


def test_versions_sort_by_time_and_are_valid_tags() -> None:
    start = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
    versions = [new_version(start + timedelta(milliseconds=step)) for step in (0, 1, 300, 5_000, 90_000_000)]
    assert versions == sorted(versions)
    assert versions[0].startswith("20260203-040506-789")
    assert len(set(versions)) == 5


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_bundle_travels_through_storage(
    bundle: Bundle, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    local = Storage(f"file://{tmp_path / 'storage'}")
    storage = local if kind == "local" else request.getfixturevalue("s3_storage")
    url = upload_bundle(bundle, storage)
    fetched = fetch_bundle(url, bundle.digest, storage, tmp_path / "cache")
    assert fetched.manifest == bundle.manifest
    # The second time it is at hand.
    assert fetch_bundle(url, bundle.digest, storage, tmp_path / "cache").path == fetched.path


def test_a_bundle_that_changed_in_storage_is_not_fetched(bundle: Bundle, s3_storage: Storage, tmp_path: Path) -> None:
    url = upload_bundle(bundle, s3_storage)
    s3_storage.write(s3_storage.key_of(url) + "/graph.onnx", b"another graph")
    with pytest.raises(InvalidBundle):
        fetch_bundle(url, bundle.digest, s3_storage, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "bundles").iterdir())


def test_a_copy_that_was_damaged_is_fetched_anew(bundle: Bundle, s3_storage: Storage, tmp_path: Path) -> None:
    url = upload_bundle(bundle, s3_storage)
    copy = fetch_bundle(url, bundle.digest, s3_storage, tmp_path / "cache")
    copy.graph.write_bytes(b"")
    again = fetch_bundle(url, bundle.digest, s3_storage, tmp_path / "cache")
    assert again.graph.read_bytes() == bundle.graph.read_bytes()


def test_a_bundle_that_is_not_there_is_said_to_be_missing(tmp_path: Path, s3_storage: Storage) -> None:
    with pytest.raises(StorageUnavailable):
        fetch_bundle(s3_storage.url_of("bundles/a/1"), "0" * 64, s3_storage, tmp_path / "cache")
