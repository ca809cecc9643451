"""Labelled images -> a bundle: embed, probe, calibrate, export, score, write."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perennial.bundle import (
    DATASET,
    GRAPH,
    GRAPH_INT8,
    GRAPH_INT8_WEIGHTS,
    REPORT,
    WEIGHTS,
    Bundle,
    Certificate,
    Dataset,
    Manifest,
    Pretrained,
    new_version,
    reference_name,
    write_bundle,
)
from perennial.errors import InvalidParameter
from perennial.graph import FLOAT32, INT8, PROPERTIES, GraphOutput
from perennial.images import ImageLimits, Pixels
from perennial.progress import Progress, Step, silent
from training import backbones, certify, datasets, evaluate, features
from training.backbones import Backbone
from training.calibrate import fit_temperature
from training.datasets import LabelledImages, Row, Skipped, Split
from training.export import ServedModel, Whitening, export_graph, fit_whitening, save_weights
from training.features import Embedded
from training.finetune import Probe, linear_probe
from training.report import render

STRATEGIES: Final = ("auto", "linear_probe")
_LARGE: Final = 10_000_000  # numbers in a matrix
_PROOF_IMAGES: Final = 8  # on so many the exported graph is compared with torch
_PACKAGES: Final = (
    "perennial", "torch", "torchvision", "scikit-learn", "numpy", "pillow", "onnx", "onnxscript", "openvino",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What to train. `images` are used in the splits they come in; `weights` is default, builtin, none or a path;
    `image_size` 0 takes the weights' own; `threads` 0 takes every core; `pretrained_sha256` is what the weights file
    must be; `int8` quantises the graph too, and certifies it."""

    images: LabelledImages
    name: str
    backbone: str
    weights: str
    strategy: str
    image_size: int
    seed: int
    threads: int
    parent: str | None = None
    pretrained_sha256: str | None = None
    int8: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """The bundle, how long it took, and everything that was not used: what was skipped on loading, then the files
    whose header was fine and whose pixels were not."""

    bundle: Bundle
    seconds: float
    skipped: tuple[Skipped, ...] = ()


def fit(request: FitRequest, *, bundles: Path, cache: Path, limits: ImageLimits, progress: Progress = silent) -> Fitted:
    """Train from the pretrained checkpoint and write a bundle at `bundles/VERSION`.

    The same request gives the same weights on the same machine. Nothing is registered anywhere.

    Raises:
        InvalidParameter: no such strategy or backbone, or one that cannot be exported.
        InvalidSettings: int8 is asked for and NNCF is not installed.
        WeightsUnavailable, WeightsChanged: the pretrained weights cannot be had, or are not the expected ones.
        InvalidDataset: too few images can be decoded.
        InvalidBundle: the exported graph does not compute what the trained model does.
    """
    started = time.perf_counter()
    if request.strategy not in STRATEGIES:
        raise InvalidParameter(f"there is no strategy {request.strategy!r}; choose from: {', '.join(STRATEGIES)}")
    if request.int8:
        certify.require_int8()
    threads = request.threads or os.cpu_count() or 1
    with _one_thread_a_batch():
        progress(Step("loading the pretrained weights", 0, 1))
        backbone = backbones.load(
            request.backbone,
            request.weights,
            image_size=request.image_size,
            seed=request.seed,
            expected_sha256=request.pretrained_sha256,
        )
        progress(Step("loading the pretrained weights", 1, 1))
        embedded = features.embed(
            request.images.rows, backbone, cache, threads=threads, limits=limits, progress=progress
        )
        images = datasets.without(request.images, embedded.failures)

        progress(Step("fitting the head", 0, 1))
        probe, temperature, whitening = _head(images, embedded, threads)
        progress(Step("fitting the head", 1, 1))

        bundles.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=bundles, prefix=".fit-") as work:
            progress(Step("exporting the graph", 0, 1))
            model = ServedModel(backbone, probe, temperature, whitening)
            graph_path = Path(work, GRAPH)
            export_graph(model, _proof(images, backbone, limits), graph_path)
            progress(Step("exporting the graph", 1, 1))

            scored = [row for row in images.rows if row.reference or row.split == "test"]
            graphs = certify.graphs(
                Path(work),
                graph_path,
                images.of("train"),
                backbone.rule,
                int8=request.int8,
                threads=threads,
                limits=limits,
                progress=progress,
            )
            outputs = evaluate.score_each(graphs, scored, backbone.rule, limits, progress)
            certificates = certify.certificates(
                outputs,
                certify.measure_speeds(graphs),
                [images.classes.index(row.label) for row in scored],
                [row.split == "test" for row in scored],
            )
            manifest = _manifest(request, images, backbone, probe, temperature, scored, outputs[FLOAT32], certificates)

            def fill(folder: Path) -> None:
                shutil.copyfile(graph_path, folder / GRAPH)
                if INT8 in manifest.precisions:
                    for name in (GRAPH_INT8, GRAPH_INT8_WEIGHTS):
                        shutil.copyfile(Path(work, name), folder / name)
                save_weights(model, folder / WEIGHTS)
                for precision in manifest.precisions:
                    table = _reference(scored, images.classes, outputs[precision])
                    parquet.write_table(table, folder / reference_name(precision))
                parquet.write_table(_dataset(images.rows), folder / DATASET)
                predicted = _predicted(images.classes, outputs[FLOAT32])
                (folder / REPORT).write_text(render(manifest, images, scored, predicted), "utf-8")

            bundle = write_bundle(bundles, manifest, fill)
    return Fitted(bundle, time.perf_counter() - started, images.skipped)


@contextmanager
def _one_thread_a_batch() -> Iterator[None]:
    # Work is shared out by the batch. Threads inside an operation would wait for each other, busily: on cores that
    # also serve, embedding small images took eighteen times as long.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of(embedded: Embedded, split: Split) -> tuple[features.Floats, list[Row]]:
    at = [index for index, row in enumerate(embedded.rows) if row.split == split]
    return embedded.features[at], [embedded.rows[index] for index in at]


def _head(images: LabelledImages, embedded: Embedded, threads: int) -> tuple[Probe, float, Whitening]:
    index = {label: at for at, label in enumerate(images.classes)}
    train, train_rows = _of(embedded, "train")
    validation, validation_rows = _of(embedded, "validation")
    validation_labels = [index[row.label] for row in validation_rows]
    # The same for the algebra, unless there is enough of it.
    with threadpool_limits(threads if train.size >= _LARGE else 1):
        probe = linear_probe(
            train,
            [index[row.label] for row in train_rows],
            [row.weight for row in train_rows],
            validation,
            validation_labels,
            len(images.classes),
        )
        whitening = fit_whitening(train)
        temperature = fit_temperature(probe.logits(validation), validation_labels)
    return probe, temperature, whitening


def _proof(images: LabelledImages, backbone: Backbone, limits: ImageLimits) -> Pixels:
    rows = images.of("train")[:_PROOF_IMAGES]
    return features.decode(rows, backbone.rule, limits)[1]


def _manifest(
    request: FitRequest,
    images: LabelledImages,
    backbone: Backbone,
    probe: Probe,
    temperature: float,
    scored: Sequence[Row],
    output: GraphOutput,
    certificates: dict[str, Certificate],
) -> Manifest:
    index = {label: at for at, label in enumerate(images.classes)}
    tested = [at for at, row in enumerate(scored) if row.split == "test"]
    true = [scored[at].label for at in tested]
    probabilities = output.probabilities[tested]
    predicted = [images.classes[at] for at in probabilities.argmax(axis=1)]
    metrics, per_class = evaluate.metrics(true, predicted, images.classes, request.seed)
    metrics |= evaluate.calibration(probabilities, [index[label] for label in true], request.seed)
    return Manifest(
        name=request.name,
        version=new_version(),
        created_at=datetime.now(UTC),
        classes=images.classes,
        input=backbone.rule,
        backbone=backbone.name,
        pretrained=Pretrained(source=backbone.source, sha256=backbone.weights_sha256),
        strategy="linear_probe",
        why=_why(request, images, probe),
        dataset=Dataset(
            location=images.location,
            fingerprint=images.fingerprint,
            train=len(images.of("train")),
            validation=len(images.of("validation")),
            test=len(images.of("test")),
            captures=sum(row.origin == "capture" for row in images.rows),
        ),
        metrics=metrics,
        per_class=per_class,
        temperature=temperature,
        properties=PROPERTIES,
        precisions=tuple(precision for precision, found in certificates.items() if found.certified),
        certificates=certificates,
        seed=request.seed,
        parent=request.parent,
        packages={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def _why(request: FitRequest, images: LabelledImages, probe: Probe) -> str:
    validation = images.of("validation")
    commonest, _ = Counter(row.label for row in images.of("train")).most_common(1)[0]
    baseline = sum(row.label == commonest for row in validation) / len(validation)
    chosen = "auto: the one strategy there is so far" if request.strategy == "auto" else "asked for"
    return (
        f"{chosen}: a linear head on frozen features; {len(images.of('train')):,} training images of "
        f"{len(images.classes)} classes; right on {probe.accuracy:.1%} of {len(validation):,} validation images, "
        f"where always answering {commonest!r} would be right on {baseline:.1%}; L2 penalty "
        f"C={probe.penalty:g}, chosen by validation log-loss"
    )


def _predicted(classes: Sequence[str], output: GraphOutput) -> list[str]:
    return [classes[at] for at in output.probabilities.argmax(axis=1)]


def _reference(rows: Sequence[Row], classes: Sequence[str], output: GraphOutput) -> pa.Table:
    predicted = _predicted(classes, output)
    at = [index for index, row in enumerate(rows) if row.reference]
    chosen = [rows[index] for index in at]

    def vectors(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> pa.Array:
        return pa.array(list(values[at]), pa.list_(pa.float32()))

    return pa.table(
        {
            "id": pa.array([row.digest for row in chosen], pa.string()),
            "image_digest": pa.array([row.digest for row in chosen], pa.string()),
            "label": pa.array([row.label for row in chosen], pa.string()),
            "predicted": pa.array([predicted[index] for index in at], pa.string()),
            "confidence": pa.array(output.probabilities[at].max(axis=1), pa.float32()),
            "probabilities": vectors(output.probabilities),
            "embedding": vectors(output.embedding),
            "properties": vectors(output.properties),
            "held_out": pa.array([row.split != "train" for row in chosen], pa.bool_()),
        }
    )


def _dataset(rows: Sequence[Row]) -> pa.Table:
    return pa.table(
        {
            "location": pa.array([row.location for row in rows], pa.string()),
            "image_digest": pa.array([row.digest for row in rows], pa.string()),
            "label": pa.array([row.label for row in rows], pa.string()),
            "split": pa.array([row.split for row in rows], pa.string()),
            "weight": pa.array([row.weight for row in rows], pa.float32()),
            "origin": pa.array([row.origin for row in rows], pa.string()),
        }
    )
