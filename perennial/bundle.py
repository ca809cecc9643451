"""A trained model as one directory. Written whole or not at all; every file's digest is verified before use.

manifest.json        what it is, how it was made, every other file's size and sha256
graph.onnx           pixels -> probabilities, embedding, properties
graph-int8.xml .bin  the same quantised, where int8 is certified
weights.safetensors  the trained weights
reference.parquet    held-out rows scored by that graph in float32: what healthy looks like
reference-P.parquet  the same rows in each other certified precision P
reference-images.parquet  what some of these rows' images look like: image_digest, image (a JPEG of at most 96 x 96)
dataset.parquet      every image it was made of: location, digest, label, split
report.html          how it was made and how good it is, for people; shows some of these images too
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from perennial.chance import ChanceEffects
from perennial.errors import InvalidBundle
from perennial.graph import FLOAT32, INT8
from perennial.images import InputRule
from perennial.storage import Storage, sha256_of_file

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
GRAPH: Final = "graph.onnx"
GRAPH_INT8: Final = "graph-int8.xml"
GRAPH_INT8_WEIGHTS: Final = "graph-int8.bin"
WEIGHTS: Final = "weights.safetensors"
REFERENCE: Final = "reference.parquet"
REFERENCE_IMAGES: Final = "reference-images.parquet"
DATASET: Final = "dataset.parquet"
REPORT: Final = "report.html"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Part):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class ClassMetrics(_Part):
    precision: Estimate
    recall: Estimate
    f1: Estimate | None = None  # bundles of before this was computed have none
    support: int


class Certificate(_Part):
    """How the model answers in one precision on the reference and test rows, against float32.

    `agreement` is the share of labels that are float32's; `accuracy` is on the held-out test rows, and `accuracy_loss`
    what it lacks of float32's. It is `certified` if both are within the budget, `least_agreement` and
    `most_accuracy_loss`; else `why` says what is not. `images_per_second` is of the machine that trained, undisturbed:
    one thread, one image at a time.
    """

    certified: bool
    why: str
    rows: int
    agreement: Estimate
    accuracy: Estimate
    accuracy_loss: float
    least_agreement: float
    most_accuracy_loss: float
    images_per_second: float


class Pretrained(_Part):
    """Where the pretrained weights came from. `source` is what `--weights` was given; `sha256` pins the file
    (empty for `none`)."""

    source: str
    sha256: str


class Dataset(_Part):
    """`location` is where the data was read; `fingerprint` is a digest over every image's digest and label."""

    location: str
    fingerprint: str
    train: int
    validation: int
    test: int
    captures: int = 0


class CurvePoint(_Part):
    """How a rung did after so many epochs and seconds of training: the share of the selection rows it had right."""

    epoch: int
    seconds: float
    accuracy: float


class Rung(_Part):
    """One way to use, or not to use, what the backbone was pretrained on.

    `accuracy`, `log_loss` (nats) and `difference` (paired, this rung minus the most accurate one) are on the selection
    rows, none of which the rung was trained on for that answer; None where it was not tried, and `why` says why.
    `seconds` is what training took, or was expected to. `parameters`, `multiply_adds` (an image) and `milliseconds` (an
    image, one thread, as it would be served) are the price of an answer.
    """

    name: str
    tried: bool
    why: str = ""
    accuracy: Estimate | None = None
    log_loss: float | None = None
    difference: Estimate | None = None
    seconds: float = 0.0
    epochs: int = 0
    parameters: int = 0
    multiply_adds: int = 0
    milliseconds: float | None = None
    curve: tuple[CurvePoint, ...] = ()


class Signals(_Part):
    """What the choice was made from: size and similarity, both measured.

    `similarity` is how much of the simple baseline's error the probe takes away (1: all; 0 or less: none), `h_score`
    the regularised H-score a class (Ibrahim et al., 2021). `expected_gain` is what each rung above the probe was
    predicted to add to its accuracy.
    """

    images: int
    classes: int
    fewest_in_a_class: int
    similarity: float
    h_score: float
    expected_gain: dict[str, float] = {}


class Arrival(_Part):
    """When training first reached an accuracy; None where it never did."""

    epochs: int | None
    seconds: float | None


class Transfer(_Part):
    """The three indicators of transfer: the pretrained knowledge alone (`alone`, against the same network with random
    weights, both frozen), the time to `to_accuracy` with and without it, and the final accuracy with and without it.
    `verdict` is `positive`, `negative`, `none` (no measurable difference) or `not measured`; `simple_suffices` says
    that the simple baseline is not measurably worse than the best rung. `says` is the same in sentences."""

    verdict: str
    simple_suffices: bool
    says: tuple[str, ...]
    alone: Estimate | None = None
    alone_random: Estimate | None = None
    to_accuracy: float | None = None
    arrival: Arrival | None = None
    arrival_from_scratch: Arrival | None = None
    final: Estimate | None = None
    final_from_scratch: Estimate | None = None


class Ladder(_Part):
    """The rungs from the cheapest to the dearest, which was `chosen`, and the evidence. `selection` says on which rows
    they were compared; `budget` is in seconds."""

    chosen: str
    selection: str
    budget: float
    rungs: tuple[Rung, ...]
    signals: Signals | None = None
    transfer: Transfer | None = None


class Finding(_Part):
    """Something about the data or the result that a person should look at. `kind` is a short stable name, such as
    `duplicates_across_splits`; `message` says it in words, with its numbers and what to do; `locations` are images that
    show it."""

    kind: str
    message: str
    locations: tuple[str, ...] = ()


class FileDigest(_Part):
    bytes: int
    sha256: str


class Manifest(_Part):
    """`precisions` are the certified ones, which the service may run: float32 always. `certificates` tells of each
    precision that was tried, `ladder` of each strategy, `findings` of what to look at before trusting the metrics,
    `chance` of how far apart the reference's own halves are (None where it is too small, or the bundle older)."""

    schema_number: int = SCHEMA
    name: str
    version: str
    created_at: datetime
    classes: tuple[str, ...]
    input: InputRule
    backbone: str
    pretrained: Pretrained
    strategy: str
    why: str
    dataset: Dataset
    metrics: dict[str, Estimate]
    per_class: dict[str, ClassMetrics]
    temperature: float
    properties: tuple[str, ...]
    precisions: tuple[str, ...]
    certificates: dict[str, Certificate] = {}
    ladder: Ladder | None = None
    findings: tuple[Finding, ...] = ()
    chance: ChanceEffects | None = None
    seed: int
    parent: str | None = None
    packages: dict[str, str]
    files: dict[str, FileDigest] = {}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on this machine. `digest` is the sha256 of its manifest, which pins all the rest."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    def graph_in(self, precision: str) -> Path:
        """The file that computes in this precision, which must be one of the manifest's."""
        return self.path / GRAPH_INT8 if precision == INT8 else self.graph

    def reference_in(self, precision: str) -> Path | None:
        """The reference rows that were scored in this precision; None if the bundle has none."""
        name = reference_name(precision)
        return self.path / name if name in self.manifest.files else None

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def reference(self) -> Path:
        return self.path / REFERENCE

    @property
    def reference_images(self) -> Path | None:
        """Thumbnails of reference images; None in bundles made before there were any, or without images."""
        return self.path / REFERENCE_IMAGES if REFERENCE_IMAGES in self.manifest.files else None

    @property
    def report(self) -> Path:
        return self.path / REPORT


def reference_name(precision: str) -> str:
    """The name of the reference rows in a precision."""
    return REFERENCE if precision == FLOAT32 else f"reference-{precision}.parquet"


def new_version(now: datetime | None = None) -> str:
    """A version that sorts by time and is a valid BentoML tag: `20261120-234012-345f1`."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}{secrets.token_hex(1)}"


def write_bundle(parent: Path, manifest: Manifest, fill: Callable[[Path], Any]) -> Bundle:
    """Write a bundle at `parent/VERSION`.

    `fill` is given an empty folder and writes every file but the manifest into it. The folder gets its final name
    only when all is written and flushed to disk.
    """
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f".{manifest.version}.{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        fill(staging)
        files = {
            path.name: FileDigest(bytes=path.stat().st_size, sha256=sha256_of_file(path))
            for path in sorted(staging.iterdir())
        }
        sealed = manifest.model_copy(update={"files": files})
        (staging / MANIFEST).write_text(sealed.model_dump_json(indent=1) + "\n", "utf-8")
        for path in staging.iterdir():
            _flush(path)
        final = parent / manifest.version
        staging.rename(final)
        _flush(parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_bundle(final)


def open_bundle(path: Path, digest: str | None = None) -> Bundle:
    """Read a bundle and verify every byte of it.

    Raises:
        InvalidBundle: the manifest cannot be read or is not the one `digest` names, a file is missing, was changed,
            or does not belong there.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise InvalidBundle(f"{path} is not a bundle: it has no {MANIFEST}")
    found = sha256_of_file(manifest_path)
    if digest is not None and found != digest:
        raise InvalidBundle(f"{manifest_path} has sha256 {found}, the ledger says {digest}")
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidBundle(f"{manifest_path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    if manifest.schema_number != SCHEMA:
        raise InvalidBundle(f"{path} has schema {manifest.schema_number}; this Perennial reads {SCHEMA}")
    if GRAPH not in manifest.files:
        raise InvalidBundle(f"{manifest_path} lists no {GRAPH}")
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if present != set(manifest.files):
        odd = ", ".join(sorted(present ^ set(manifest.files)))
        raise InvalidBundle(f"{path}: files missing or not listed in the manifest: {odd}")
    for name, expected in manifest.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size != expected.bytes:
            raise InvalidBundle(f"{file} is not the {expected.bytes:,}-byte file that the manifest lists")
        if sha256_of_file(file) != expected.sha256:
            raise InvalidBundle(f"{file} was changed: its sha256 is not the manifest's")
    return Bundle(path, manifest, found)


def bundle_key(bundle: Bundle) -> str:
    """Where a bundle is kept in storage."""
    return f"bundles/{bundle.manifest.name}/{bundle.manifest.version}"


def upload_bundle(bundle: Bundle, storage: Storage) -> str:
    """Copy a bundle into storage, the manifest last. Returns its URL there."""
    return storage.write_folder(bundle_key(bundle), bundle.path, last=MANIFEST)


def fetch_bundle(url: str, digest: str, storage: Storage, cache: Path) -> Bundle:
    """A verified bundle on this machine: in place if the storage is a local folder, else a cached copy.

    Raises:
        InvalidBundle: it does not verify.
        StorageUnavailable: it cannot be read.
    """
    key = storage.key_of(url)
    local = storage.local_path(key)
    if local is not None:
        return open_bundle(local, digest)
    final = cache / "bundles" / digest
    if final.is_dir():
        try:
            return open_bundle(final, digest)
        except InvalidBundle:
            shutil.rmtree(final)  # a copy that was damaged; what is in storage decides
    if not final.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = final.with_name(f".{digest}.{secrets.token_hex(4)}")
        staging.mkdir()
        try:
            storage.read_folder(key, staging)
            open_bundle(staging, digest)
            if not final.is_dir():  # another process may have been faster
                staging.rename(final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return open_bundle(final, digest)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
