"""A pretrained network as it is, with its own classifier: transfer without training.

There is no training data, so nothing says what healthy traffic looks like. With a folder of images to be expected, the
bundle gets its reference rows from it; without one it has none, and the monitor says that it cannot compare.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import sqlalchemy as sa
from pyarrow import parquet
from torch import nn

from perennial.bundle import (
    DATASET,
    GRAPH,
    REFERENCE_IMAGES,
    WEIGHTS,
    Bundle,
    Certificate,
    ClassMetrics,
    Dataset,
    Estimate,
    Manifest,
    Pretrained,
    new_version,
    reference_name,
    write_bundle,
)
from perennial.errors import InvalidDataset, InvalidImage, InvalidParameter, NoLiveModel
from perennial.graph import FLOAT32, PROPERTIES, GraphOutput
from perennial.images import ImageLimits, InputRule, Pixels, prepare
from perennial.ledger import deployments
from perennial.progress import Progress, Step, silent
from perennial.settings import Settings
from perennial.storage import Storage, sha256
from training import backbones, certify, evaluate, features
from training.backbones import Backbone
from training.datasets import Row
from training.export import EMBEDDING, ServedModel, export_graph, fixed_projection, save_weights
from training.publish import publish
from training.reference import dataset_table, reference_chance, reference_table
from training.reference_images import ReferenceImages

STRATEGY: Final = "imported"
MOST_REFERENCE: Final = 2000
LEAST_REFERENCE: Final = 100
_SOURCE: Final = "torchvision"
_PROOF_IMAGES: Final = 8
_READERS: Final = 8
_AT_ONCE: Final = 256
_PACKAGES: Final = (
    "perennial", "torch", "torchvision", "scikit-learn", "numpy", "pillow", "onnx", "onnxscript", "openvino",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Imported:
    """`live`: it went live, because no model of that name was. Of `images` reference rows `labelled` have a label."""

    bundle: Bundle
    live: bool
    images: int
    labelled: int
    skipped: tuple[str, ...]


def import_model(
    engine: sa.Engine,
    settings: Settings,
    source: str,
    *,
    weights: str = "default",
    image_size: int = 0,
    data: str | None = None,
    progress: Progress = silent,
) -> Imported:
    """Make a bundle of a pretrained network with its 1,000 ImageNet classes, and publish it.

    Args:
        source: such as `torchvision:resnet50`.
        weights: `default`, or the path of a file that holds the whole network, classifier included.
        data: a folder of images like those to be expected, at any depth. A folder that is called as one of the classes
            labels its images.

    Raises:
        InvalidParameter: no such source or network, or weights that have no classifier.
        WeightsUnavailable: the weights cannot be had or do not fit.
        InvalidDataset: the folder holds too few images.
        StorageUnavailable, LedgerUnavailable: see `perennial.errors`.
    """
    name = backbone_of(source)
    storage = Storage(settings.blobs_url)  # first: better to hear now than after the work that it cannot be used
    limits = ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels)
    progress(Step("loading the pretrained weights", 0, 1))
    weights = weights if weights == "default" else str(Path(weights).expanduser().absolute())
    backbone, head = backbones.load_with_head(name, weights, image_size=image_size)
    classes = tuple(backbones.published(name).meta["categories"])
    progress(Step("loading the pretrained weights", 1, 1))
    rows, skipped = ([], []) if data is None else list_images(data, classes, backbone.rule, limits, progress)
    bundle = _bundle(backbone, head, classes, rows, settings, source, data, limits, progress)
    publish(bundle, engine, storage)
    live = _goes_live(engine, settings.name, bundle.manifest.version)
    return Imported(bundle, live, len(rows), sum(bool(row.label) for row in rows), tuple(skipped))


def backbone_of(source: str) -> str:
    """`torchvision:resnet50` -> `resnet50`. Raises InvalidParameter for any other kind of source."""
    kind, colon, name = source.partition(":")
    if kind != _SOURCE or not colon:
        raise InvalidParameter(
            f"{source!r} is no source to import from; give {_SOURCE}:NAME, such as {_SOURCE}:resnet50 "
            "(`perennial backbones` lists the names)"
        )
    if name not in backbones.names():
        raise InvalidParameter(f"torchvision has no classification network {name!r}; `perennial backbones` lists them")
    return name


def list_images(
    data: str, classes: Sequence[str], rule: InputRule, limits: ImageLimits, progress: Progress = silent
) -> tuple[list[Row], list[str]]:
    """Up to 2,000 images of a folder as reference rows, each once, ordered by digest; and what was skipped, with why.
    Of more images some are drawn, the same ones each time. An image's label is its folder's name if that is a class,
    else empty.

    Raises:
        InvalidDataset: there is no such folder, or it holds fewer than 100 images.
    """
    folder = Path(data).expanduser().absolute()
    if not folder.is_dir():
        raise InvalidDataset(f"{folder} is no folder; give --data a folder of images like those to be expected")
    known = {label.casefold(): label for label in classes}

    def read(path: Path) -> Row | str:
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > limits.max_bytes:
                return f"{path}: not a file of at most {limits.max_bytes:,} bytes"
            content = path.read_bytes()
            header = prepare(content, rule, limits).header  # in full: a truncated image shows only then
        except (InvalidImage, OSError) as error:
            return f"{path}: {error}"
        label = known.get(path.parent.name.casefold(), "")
        return Row(str(path), label, sha256(content), "test", reference=True, header=header)

    paths = [path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith(".")]
    paths.sort(key=lambda path: sha256(os.fsencode(path.relative_to(folder))))
    rows: dict[str, Row] = {}
    skipped: list[str] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            for each in pool.map(read, paths[start : start + _AT_ONCE]):
                if isinstance(each, str):
                    skipped.append(each)
                else:
                    rows.setdefault(each.digest, each)
            progress(Step("reading images", min(start + _AT_ONCE, len(paths)), len(paths)))
            if len(rows) >= MOST_REFERENCE:
                break
    if len(rows) < LEAST_REFERENCE:
        raise InvalidDataset(
            f"{folder} holds {len(rows)} images that can be read, and a reference needs at least {LEAST_REFERENCE} to "
            "tell a change from chance; add some, or leave out --data"
        )
    return [rows[digest] for digest in sorted(rows)], skipped


def _bundle(
    backbone: Backbone,
    head: nn.Module,
    classes: tuple[str, ...],
    rows: Sequence[Row],
    settings: Settings,
    source: str,
    data: str | None,
    limits: ImageLimits,
    progress: Progress,
) -> Bundle:
    bundles = settings.home_path / "models"
    bundles.mkdir(parents=True, exist_ok=True)
    linear = next((layer for layer in head.modules() if isinstance(layer, nn.Linear)), None)
    directions = fixed_projection(backbone.width, None if linear is None else linear.weight.numpy())
    with tempfile.TemporaryDirectory(dir=bundles, prefix=".import-") as work:
        progress(Step("exporting the graph", 0, 1))
        model = ServedModel(backbone, head, 1.0, directions)
        graph_path = Path(work, GRAPH)
        export_graph(model, _proof(rows, backbone, limits), graph_path)
        progress(Step("exporting the graph", 1, 1))
        threads = settings.train.threads or os.cpu_count() or 1
        pictures = ReferenceImages(rows)
        outputs, certificates = _score(graph_path, rows, classes, backbone, limits, threads, progress, pictures)
        manifest = _manifest(backbone, classes, rows, outputs, certificates, settings, source, data)

        def fill(folder: Path) -> None:
            shutil.copyfile(graph_path, folder / GRAPH)
            save_weights(model, folder / WEIGHTS)
            for precision in manifest.precisions:
                parquet.write_table(
                    reference_table(rows, classes, outputs[precision]), folder / reference_name(precision)
                )
            if rows:
                parquet.write_table(pictures.table(), folder / REFERENCE_IMAGES)
            parquet.write_table(dataset_table(()), folder / DATASET)

        return write_bundle(bundles, manifest, fill)


def _proof(rows: Sequence[Row], backbone: Backbone, limits: ImageLimits) -> Pixels:
    if rows:
        return features.decode(list(rows[:_PROOF_IMAGES]), backbone.rule, limits)[1]
    side = backbone.rule.crop
    return np.random.default_rng(0).integers(0, 256, (_PROOF_IMAGES, side, side, 3), np.uint8)


def _score(
    path: Path,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    backbone: Backbone,
    limits: ImageLimits,
    threads: int,
    progress: Progress,
    pictures: ReferenceImages,
) -> tuple[dict[str, GraphOutput], dict[str, Certificate]]:
    """What each precision's graph says about the rows, and a certificate for each. Without rows there is nothing to
    judge another precision by: float32 alone, which is what the weights were made in."""
    if not rows:
        empty = (np.empty((0, width), np.float32) for width in (len(classes), EMBEDDING, len(PROPERTIES)))
        return {FLOAT32: GraphOutput(*empty)}, {}
    graphs = certify.graphs(
        path.parent, path, rows, backbone.rule, int8=False, threads=threads, limits=limits, progress=progress
    )
    outputs = evaluate.score_each(graphs, rows, backbone.rule, limits, progress, pictures.look)
    true = [classes.index(row.label) if row.label else 0 for row in rows]
    labelled = [bool(row.label) for row in rows]
    return outputs, certify.certificates(outputs, certify.measure_speeds(graphs), true, labelled)


def _manifest(
    backbone: Backbone,
    classes: tuple[str, ...],
    rows: Sequence[Row],
    outputs: dict[str, GraphOutput],
    certificates: dict[str, Certificate],
    settings: Settings,
    source: str,
    data: str | None,
) -> Manifest:
    labelled = [at for at, row in enumerate(rows) if row.label]
    metrics, per_class = _metrics(classes, [rows[at].label for at in labelled], outputs[FLOAT32], labelled)
    certified = tuple(precision for precision, found in certificates.items() if found.certified)
    return Manifest(
        name=settings.name,
        version=new_version(),
        created_at=datetime.now(UTC),
        classes=classes,
        input=backbone.rule,
        backbone=backbone.name,
        pretrained=Pretrained(source=backbone.source, sha256=backbone.weights_sha256),
        strategy=STRATEGY,
        why=_why(source, data, len(rows), len(labelled)),
        # Where nothing was trained there is no data to train on again: a retrain must be given some.
        dataset=Dataset(location=source, fingerprint="", train=0, validation=0, test=len(rows)),
        metrics=metrics,
        per_class=per_class,
        temperature=1.0,
        properties=PROPERTIES,
        precisions=certified or (FLOAT32,),
        certificates=certificates,
        chance=reference_chance(rows, classes, outputs[FLOAT32]),
        seed=settings.train.seed,
        packages={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def _metrics(
    classes: tuple[str, ...], true: list[str], output: GraphOutput, at: list[int]
) -> tuple[dict[str, Estimate], dict[str, ClassMetrics]]:
    """Accuracy and calibration on the labelled rows, and precision and recall of the classes among them. None of it
    where there are none; macro-F1 over a thousand classes of which a few occur would say nothing."""
    if not true:
        return {}, {}
    probabilities = output.probabilities[at]
    predicted = [classes[best] for best in probabilities.argmax(axis=1)]
    right = sum(label == guess for label, guess in zip(true, predicted, strict=True))
    metrics = {
        "accuracy": evaluate.accuracy_interval(right, len(true)),
        **evaluate.calibration(probabilities, [classes.index(label) for label in true]),
    }
    pairs = list(zip(true, predicted, strict=True))
    per_class = {
        label: ClassMetrics(
            precision=evaluate.accuracy_interval(pairs.count((label, label)), predicted.count(label)),
            recall=evaluate.accuracy_interval(pairs.count((label, label)), true.count(label)),
            support=true.count(label),
        )
        for label in sorted(set(true))
    }
    return metrics, per_class


def _why(source: str, data: str | None, images: int, labelled: int) -> str:
    if data is None:
        about = "no images were given to compare traffic with, so the monitor has no reference"
    else:
        about = f"the reference is {images:,} images of {data}, {labelled:,} of them labelled with one of the classes"
    return f"asked for: {source} as it is, with its own classifier; nothing was trained; {about}"


def _goes_live(engine: sa.Engine, name: str, version: str) -> bool:
    try:
        deployments.live(engine, name)
    except NoLiveModel:
        deployments.deploy(engine, name, version, reason="the first model of its name", actor="import")
        return True
    return False
