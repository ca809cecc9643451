from __future__ import annotations

from pathlib import Path

import bentoml
import pytest
import sqlalchemy as sa

from perennial import ledger
from perennial.bundle import Bundle, fetch_bundle, open_bundle
from perennial.errors import InvalidBundle, StorageUnavailable, UnknownModel
from perennial.storage import Storage
from training.publish import publish, tag_of

# BentoML 1.4 imports a name that pathspec has deprecated.


@pytest.fixture
def storage(home: Path, tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path / 'storage'}")


def test_a_published_model_can_be_fetched_from_the_ledgers_word(
    shape_bundle: Bundle, engine: sa.Engine, storage: Storage, tmp_path: Path
) -> None:
    publish(shape_bundle, engine, storage)
    model = ledger.models.get(engine, "shapes", shape_bundle.manifest.version)
    fetched = fetch_bundle(model.bundle_url, model.digest, storage, tmp_path / "cache")
    assert fetched.manifest == shape_bundle.manifest == model.manifest
    kept = bentoml.models.get(tag_of(shape_bundle))
    assert open_bundle_of(Path(kept.path)) == shape_bundle.manifest.files
    assert kept.info.metadata["digest"] == shape_bundle.digest


def open_bundle_of(path: Path) -> object:
    """BentoML adds its model.yaml; everything else must be the bundle, byte for byte."""
    (path / "model.yaml").unlink()
    return open_bundle(path).manifest.files


def test_publishing_again_changes_nothing(shape_bundle: Bundle, engine: sa.Engine, storage: Storage) -> None:
    publish(shape_bundle, engine, storage)
    publish(shape_bundle, engine, storage)
    assert len(ledger.models.all_of(engine, "shapes")) == 1


def test_a_crash_before_the_ledger_is_made_good_by_the_next_attempt(
    shape_bundle: Bundle, engine: sa.Engine, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ledger.models, "register", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish(shape_bundle, engine, storage)
    assert not ledger.models.all_of(engine, "shapes")
    publish(shape_bundle, engine, storage)
    assert [model.version for model in ledger.models.all_of(engine, "shapes")] == [shape_bundle.manifest.version]


def test_without_storage_nothing_is_registered(shape_bundle: Bundle, engine: sa.Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable):
        publish(shape_bundle, engine, Storage(f"file://{tmp_path / 'file' / 'storage'}"))
    with pytest.raises(UnknownModel):
        ledger.models.get(engine, "shapes", shape_bundle.manifest.version)


@pytest.mark.parametrize("url", ["file://{}/storage", "memory://{}/storage"])
def test_a_copy_that_storage_damaged_is_not_registered(
    shape_bundle: Bundle, engine: sa.Engine, home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(url.format(tmp_path))
    write = Storage.write

    def damaging(self: Storage, key: str, data: bytes) -> str:
        return write(self, key, data[:-1] + bytes([data[-1] ^ 1]) if key.endswith(".onnx") else data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", damaging)
        with pytest.raises(InvalidBundle, match=r"not what was written there.*look after the storage.*graph\.onnx"):
            publish(shape_bundle, engine, storage)
    assert not ledger.models.all_of(engine, "shapes")
    publish(shape_bundle, engine, storage)
    assert [model.version for model in ledger.models.all_of(engine, "shapes")] == [shape_bundle.manifest.version]
