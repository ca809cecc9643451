"""Is what the live model needs still there: its bundle, its pretrained weights, its training data?"""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.doctor.findings import Finding, not_checked, ok, problem, warning
from perennial.errors import InvalidBundle, InvalidDataset, NoLiveModel, StorageUnavailable, WeightsUnavailable
from perennial.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.bundle import Manifest
    from perennial.ledger.models import Model

_BUNDLE: Final = "bundle"
_WEIGHTS: Final = "weights"
_DATA: Final = "training data"
_ALL: Final = (_BUNDLE, _WEIGHTS, _DATA)


def look(settings: Settings, engine: sa.Engine | None, *, reachable: bool) -> list[Finding]:
    """`reachable`: whether the storage is."""
    if engine is None:
        return [not_checked(check, "which model is live is in the ledger, and there is none to read") for check in _ALL]
    from perennial.ledger import deployments, models

    try:
        live = deployments.live(engine, settings.name)
    except NoLiveModel:
        why, next_step = f"no model {settings.name!r} is live yet", f"perennial train DATA --name {settings.name}"
        return [not_checked(_BUNDLE, why, next_step), *(not_checked(check, why) for check in _ALL[1:])]
    model = models.get(engine, settings.name, live.version)
    bundle = _bundle(settings, model) if reachable else not_checked(_BUNDLE, "the storage cannot be used")
    return [bundle, _weights(model.manifest), _data(settings, model.manifest)]


def _bundle(settings: Settings, model: Model) -> Finding:
    from perennial.bundle import fetch_bundle
    from perennial.storage import Storage

    storage = Storage(settings.blobs_url)
    try:
        bundle = fetch_bundle(model.bundle_url, model.digest, storage, settings.cache_path)
    except (InvalidBundle, StorageUnavailable, OSError) as error:
        return problem(_BUNDLE, f"version {model.version} is live: {error}", _restore(settings, model))
    return ok(_BUNDLE, f"version {model.version}: every file has its digest, at {bundle.path}")


def _restore(settings: Settings, model: Model) -> str:
    """The copy that training left in `home`, if it is whole; else the model before."""
    from perennial.bundle import open_bundle
    from perennial.storage import Storage

    copy = settings.home_path / "models" / model.version
    storage = Storage(settings.blobs_url)
    try:
        place = storage.local_path(storage.key_of(model.bundle_url))
        open_bundle(copy, model.digest)
    except (InvalidBundle, StorageUnavailable, OSError):
        return f"put back a backup of {model.bundle_url}; or go back to the model before: perennial models rollback"
    if place is None:
        return f"copy the files of {copy} to {model.bundle_url}"
    there, target = shlex.quote(str(copy)), shlex.quote(str(place))
    return f"rm -rf {target} && mkdir -p {shlex.quote(str(place.parent))} && cp -a {there} {target}"


def _weights(manifest: Manifest) -> Finding:
    from perennial.storage import sha256_of_file

    source, expected = manifest.pretrained.source, manifest.pretrained.sha256
    if source == "none":
        return ok(_WEIGHTS, "trained from random weights, on purpose")
    if source not in ("default", "builtin"):
        path: Path | None = Path(source).expanduser().absolute()
    elif find_spec("torch") is None or find_spec("torchvision") is None:
        return not_checked(_WEIGHTS, "this installation cannot train; it is asked where retrains run")
    else:
        from training import backbones

        try:
            path = backbones.at_hand(manifest.backbone, source)
        except WeightsUnavailable as error:
            return problem(_WEIGHTS, error.detail, "pip install --force-reinstall --no-deps perennial")
    assert path is not None  # only `none` has no file
    if not path.is_file():
        if source == "default":
            said = f"torchvision's weights of {manifest.backbone} are not here; a retrain downloads them to {path}"
            return warning(_WEIGHTS, said, f"download them while there is a network: {_fetch(manifest.backbone)}")
        mend = f"put the file with sha256 {expected} back at {shlex.quote(str(path))}"
        return problem(_WEIGHTS, f"the pretrained weights {path} are gone: no retrain can begin", mend)
    found = sha256_of_file(path)
    if found != expected:
        said = f"{path} has sha256 {found}; the live model was made from {expected}"
        mend = f"put the file with sha256 {expected} back at {shlex.quote(str(path))}"
        return problem(_WEIGHTS, said, f"{mend}; or train anew: perennial train DATA")
    return ok(_WEIGHTS, f"{path}, sha256 as pinned")


def _fetch(backbone: str) -> str:
    return (
        "python -c \"import torchvision as v; w = v.models.get_model_weights('"
        f"{backbone}'); getattr(w, 'IMAGENET1K_V1', w.DEFAULT).get_state_dict()\""
    )


def _data(settings: Settings, manifest: Manifest) -> Finding:
    location = settings.retrain.data or manifest.dataset.location
    if manifest.dataset.train == 0:
        return ok(_DATA, "the model was imported, so a retrain learns from labelled captures only")
    if find_spec("pyarrow") is None:
        return not_checked(_DATA, "this installation cannot train; it is asked where retrains run")
    from training.listing import list_folder, list_manifest

    path = Path(location).expanduser().absolute()
    if not path.exists():
        said = f"the training data is not at {path}: no retrain can begin"
        return problem(_DATA, said, f"put it back at {shlex.quote(str(path))}; or set retrain.data to where it is")
    try:
        listing = list_folder(path) if path.is_dir() else list_manifest(path)
    except (InvalidDataset, OSError) as error:
        return problem(_DATA, str(error), f"put it back as it was at {path}; or set retrain.data to where it is")
    if not listing.entries:
        return problem(_DATA, f"{path} holds no images", "put them back there; or set retrain.data to where they are")
    return ok(_DATA, f"{len(listing.entries):,} images in {len(listing.classes)} classes at {path}")
