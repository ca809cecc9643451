"""A bundle into storage, BentoML's model store and the ledger."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import sqlalchemy as sa

from perennial import ledger
from perennial.bundle import Bundle, bundle_key, fetch_bundle, upload_bundle
from perennial.errors import InvalidBundle, StorageUnavailable, UnknownModel
from perennial.storage import Storage


def publish(bundle: Bundle, engine: sa.Engine, storage: Storage) -> None:
    """Make a bundle known. The ledger row comes last: a crash before it leaves files that nothing refers to, and
    publishing again completes them. A bundle that is already registered is left as it is.

    The copy in storage is fetched as the service will, byte for byte, before it is registered: what is judged here is
    what is served there.

    Raises:
        InvalidBundle: what storage holds is not what was written to it; nothing was registered.
        StorageUnavailable, LedgerUnavailable: a place cannot be reached; nothing was registered.
        OSError: BentoML's model store cannot be written to; nothing was registered.
    """
    manifest = bundle.manifest
    with contextlib.suppress(UnknownModel):
        if ledger.models.get(engine, manifest.name, manifest.version).digest == bundle.digest:
            return
    try:
        url = upload_bundle(bundle, storage)
        _check_copy(url, bundle, storage)
        _keep_in_model_store(bundle)
    except Exception:
        # Whoever has just run out of room needs it, and `perennial prune` would leave this for a day.
        with contextlib.suppress(StorageUnavailable):
            storage.delete_all([blob.key for blob in storage.listing(bundle_key(bundle))])
        raise
    ledger.models.register(engine, bundle, url)


def tag_of(bundle: Bundle) -> str:
    """The bundle's tag in BentoML's model store, such as `perennial-default:20261120-234012-345f1`."""
    return f"perennial-{bundle.manifest.name}:{bundle.manifest.version}"


def _check_copy(url: str, bundle: Bundle, storage: Storage) -> None:
    with tempfile.TemporaryDirectory(prefix="perennial-") as folder:  # storage that is a local folder is read in place
        try:
            fetch_bundle(url, bundle.digest, storage, Path(folder))
        except InvalidBundle as error:
            raise InvalidBundle(
                f"{url} is not what was written there, so it is not registered; look after the storage, then try "
                f"again: {error}"
            ) from error


def _keep_in_model_store(bundle: Bundle) -> None:
    import bentoml
    from bentoml.exceptions import NotFound

    manifest = bundle.manifest
    with contextlib.suppress(NotFound):  # left by an earlier attempt that did not reach the ledger
        bentoml.models.delete(tag_of(bundle))
    labels = {"perennial.name": manifest.name, "perennial.backbone": manifest.backbone}
    metadata = {
        "digest": bundle.digest,
        "strategy": manifest.strategy,
        "classes": list(manifest.classes),
        "metrics": {name: estimate.model_dump() for name, estimate in manifest.metrics.items()},
        "dataset": manifest.dataset.fingerprint,
        "pretrained": manifest.pretrained.model_dump(),
        "parent": manifest.parent or "",
    }
    with bentoml.models.create(tag_of(bundle), labels=labels, metadata=metadata) as kept:
        shutil.copytree(bundle.path, kept.path, dirs_exist_ok=True)
