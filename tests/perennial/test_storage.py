"""Blobs by URL: the same on a local folder and on S3."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.errors import StorageUnavailable
from perennial.storage import Storage, capture_key, sha256


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(f"file://{tmp_path / 'storage'}")
    found: Storage = request.getfixturevalue("s3_storage")
    return found


def test_what_is_written_is_read_back(storage: Storage) -> None:
    url = storage.write("captures/ab/x.jpg", b"bytes")
    assert url == storage.url_of("captures/ab/x.jpg")
    assert storage.key_of(url) == "captures/ab/x.jpg"
    assert storage.exists("captures/ab/x.jpg")
    assert storage.read("captures/ab/x.jpg") == b"bytes"
    storage.write("captures/ab/x.jpg", b"others")
    assert storage.read("captures/ab/x.jpg") == b"others"


def test_of_what_is_longer_than_allowed_no_more_is_read_than_shows_it(storage: Storage) -> None:
    storage.write("captures/a.jpg", b"0123456789")
    assert storage.read("captures/a.jpg", 10) == storage.read("captures/a.jpg", 99) == b"0123456789"
    assert storage.read("captures/a.jpg", 4) == b"01234"


def test_what_is_deleted_is_gone_and_deleting_twice_is_harmless(storage: Storage) -> None:
    storage.write("reports/a.html", b"x")
    storage.delete("reports/a.html")
    storage.delete("reports/a.html")
    assert not storage.exists("reports/a.html")


def test_what_is_not_there_is_an_error(storage: Storage) -> None:
    assert not storage.exists("captures/none")
    with pytest.raises(StorageUnavailable, match="captures/none"):
        storage.read("captures/none")


@pytest.mark.parametrize("key", ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "."])
def test_a_key_never_leaves_the_storage(storage: Storage, key: str) -> None:
    with pytest.raises(StorageUnavailable, match="not a storage key"):
        storage.write(key, b"x")


def test_a_url_of_another_storage_is_refused(storage: Storage) -> None:
    with pytest.raises(StorageUnavailable, match="was storage_url changed"):
        storage.key_of("s3://somebody-elses/captures/x")


def test_a_url_of_no_known_kind_is_refused() -> None:
    with pytest.raises(StorageUnavailable, match="cannot be used"):
        Storage("nonsense://x")


def test_a_write_that_fails_leaves_the_old_blob_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"file://{tmp_path}")
    storage.write("a/blob", b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("perennial.storage.os.replace", full)
    with pytest.raises(StorageUnavailable, match="no space left"):
        storage.write("a/blob", b"new")
    monkeypatch.undo()
    assert storage.read("a/blob") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["blob"]


def test_the_same_bytes_have_the_same_capture_key() -> None:
    digest = sha256(b"image")
    assert capture_key(digest, "JPEG") == f"captures/{digest[:2]}/{digest}.jpg"


def test_a_listing_gives_size_and_time_of_what_lies_directly_under_a_key(storage: Storage) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)
    assert storage.listing("captures/ab") == []
    assert storage.folders("captures") == []
    storage.write("captures/ab/x.jpg", b"bytes")
    storage.write("captures/ab/y.jpg", b"")
    storage.write("captures/ab/deeper/z.jpg", b"z")
    storage.write("captures/ac/x.jpg", b"x")
    found = {blob.key: blob for blob in storage.listing("captures/ab")}
    assert storage.folders("captures") == ["captures/ab", "captures/ac"]
    assert {key: blob.bytes for key, blob in found.items()} == {"captures/ab/x.jpg": 5, "captures/ab/y.jpg": 0}
    assert all(began < blob.modified < datetime.now(UTC) + timedelta(seconds=2) for blob in found.values())
    storage.delete("captures/ab/x.jpg")
    assert [blob.key for blob in storage.listing("captures/ab")] == ["captures/ab/y.jpg"]


def test_many_are_deleted_at_once_and_those_that_are_gone_are_no_error(storage: Storage) -> None:
    keys = [f"captures/ab/{number}.jpg" for number in range(20)]
    for key in keys:
        storage.write(key, b"x")
    storage.delete(keys[3])
    storage.write("captures/ab/other.jpg", b"x")
    storage.delete_all(keys)
    storage.delete_all(keys)
    storage.delete_all([])
    assert [blob.key for blob in storage.listing("captures/ab")] == ["captures/ab/other.jpg"]


def test_a_bucket_that_refuses_to_delete_is_said_so(s3_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_storage.write("captures/ab/x.jpg", b"x")
    # S3 answers a bulk delete with 200 even if it refused every key.
    monkeypatch.setattr(s3_storage._files, "rm", lambda paths: [])
    with pytest.raises(StorageUnavailable, match="is deleting allowed"):
        s3_storage.delete_all(["captures/ab/x.jpg"])


def test_a_crash_while_writing_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    # The writer is killed between the temporary file and its final name.
    killed = (
        "import os, signal, sys; import perennial.storage as storage; "
        "storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        f"storage.Storage('file://{tmp_path}').write('bundles/shapes/v1/graph.onnx', b'half')"
    )
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    storage = Storage(f"file://{tmp_path}")
    assert list((tmp_path / "bundles/shapes/v1").iterdir()) == []
    storage.write("bundles/shapes/v1/graph.onnx", b"whole")
    copy = tmp_path / "copy"
    copy.mkdir()
    storage.read_folder("bundles/shapes/v1", copy)
    assert [path.name for path in copy.iterdir()] == ["graph.onnx"]
    later = datetime.now(UTC) + timedelta(minutes=1)
    (left,) = storage.leftovers("bundles/shapes", later)
    assert left.bytes == 4
    assert storage.leftovers("bundles/shapes", later - timedelta(hours=1)) == []
    storage.delete_all([left.key])
    assert storage.leftovers("bundles/shapes", later) == []
