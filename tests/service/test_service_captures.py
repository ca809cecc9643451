"""Which images are kept, and that keeping them never costs a prediction."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from perennial.errors import InvalidSettings
from perennial.settings import load_settings
from perennial.settings_sections import ServeSettings
from perennial.storage import Storage, sha256
from service.captures import Captures
from tests.service.conftest import wait


def captures(tmp_path: Path, storage: str = "storage", **serve: Any) -> Captures:
    settings = ServeSettings(**{"min_free_bytes": 0, **serve})
    return Captures(Storage(f"file://{tmp_path / storage}"), tmp_path / "journal", settings)


def keep(made: Captures, image: bytes, confidence: float = 0.9) -> str | None:
    return made.keep(image, sha256(image), "PNG", confidence)


def kept(tmp_path: Path) -> set[bytes]:
    return {path.read_bytes() for path in (tmp_path / "storage").rglob("*.png")}


def test_all_images_are_kept_each_once(tmp_path: Path) -> None:
    made = captures(tmp_path)
    urls = [keep(made, image) for image in (b"one", b"two", b"one")]
    made.close(5)
    assert urls[0] == urls[2] != urls[1]
    assert kept(tmp_path) == {b"one", b"two"}
    storage = Storage(f"file://{tmp_path}/storage")
    assert storage.read(storage.key_of(str(urls[1]))) == b"two"


def test_a_share_is_chosen_by_the_image_alone(tmp_path: Path) -> None:
    images = [f"image {index}".encode() for index in range(400)]
    made = captures(tmp_path, capture=0.25)
    first = [keep(made, image) for image in images]
    again = [keep(made, image) for image in images]
    made.close(5)
    assert first == again
    assert 60 < sum(url is not None for url in first) < 140
    assert len(kept(tmp_path)) == sum(url is not None for url in first)


def test_none_are_kept_at_zero(tmp_path: Path) -> None:
    made = captures(tmp_path, capture=0)
    assert keep(made, b"one") is None
    made.close(5)


def test_the_uncertain_ones_are_kept(tmp_path: Path) -> None:
    made = captures(tmp_path, capture="uncertain", uncertain_below=0.7)
    assert keep(made, b"sure", confidence=0.71) is None
    assert keep(made, b"unsure", confidence=0.69) is not None
    made.close(5)
    assert kept(tmp_path) == {b"unsure"}


@pytest.mark.parametrize("capture", ["some", "1.5", "-1"])
def test_what_is_no_share_is_said_so(capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_SERVE__CAPTURE", capture)
    with pytest.raises(InvalidSettings, match=r"serve\.capture"):
        load_settings()


def test_a_share_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_SERVE__CAPTURE", "0.5")
    assert load_settings().serve.capture == 0.5


def test_images_wait_while_the_storage_fails_and_are_stored_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "storage").write_bytes(b"in the way")
    made = captures(tmp_path)
    assert keep(made, b"one") is not None
    assert wait(lambda: made.failing)
    (tmp_path / "storage").unlink()
    made.close(10)
    assert kept(tmp_path) == {b"one"}


def test_images_that_wait_when_the_process_ends_are_stored_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "storage").write_bytes(b"in the way")
    made = captures(tmp_path)
    assert keep(made, b"one") is not None
    made.close(0.5)
    (tmp_path / "storage").unlink()
    captures(tmp_path).close(5)
    assert kept(tmp_path) == {b"one"}


def test_an_image_without_room_to_wait_is_dropped_and_kept_when_it_comes_again(tmp_path: Path) -> None:
    (tmp_path / "storage").write_bytes(b"in the way")
    made = captures(tmp_path, capture_backlog_bytes=100)
    assert keep(made, b"x" * 200) is not None
    assert keep(made, b"late") is None
    (tmp_path / "storage").unlink()
    assert wait(lambda: not made.failing and made.waiting == 0)
    assert keep(made, b"late") is not None
    made.close(5)
    assert kept(tmp_path) == {b"x" * 200, b"late"}


def test_an_image_deleted_from_the_storage_costs_nothing(tmp_path: Path) -> None:
    made = captures(tmp_path)
    url = keep(made, b"one")
    assert wait(lambda: made.waiting == 0)
    shutil.rmtree(tmp_path / "storage")
    assert keep(made, b"one") == url
    made.close(5)
