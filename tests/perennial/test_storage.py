"""Blobs by URL: the same on a local folder and on S3."""

from __future__ import annotations

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
