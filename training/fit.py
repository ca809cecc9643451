"""Labelled images -> a bundle: embed, probe, calibrate, export, score, write."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from pyarrow import parquet
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perennial.bundle import (
    DATASET,
    GRAPH,
    GRAPH_INT8,
    GRAPH_INT8_WEIGHTS,
    REFERENCE_IMAGES,
    REPORT,
    WEIGHTS,
    Bundle,
    Certificate,
    Dataset,
    Ladder,
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
from training import backbones, certify, datasets, evaluate, features, strategy, trust, unlabelled
from training.allocator import give_back_freed_memory
from training.backbones import Backbone
from training.datasets import LabelledImages, Row, Skipped
from training.export import ServedModel, export_graph, fit_whitening, save_weights
from training.features import Embedded
from training.label_errors import LabelError, likely_label_errors
from training.reference import dataset_table, reference_chance, reference_table
from training.reference_images import ReferenceImages
from training.report import render
from training.run_log import Log, unlogged
from training.rungs import LINEAR_PROBE, MAJORITY, NAMES, SIMPLE
from training.strategy import AUTO, STRATEGIES, Chosen, Climb
from training.together import ANY, Hardware

_LARGE: Final = 10_000_000  # numbers in a matrix
_PROOF_IMAGES: Final = 8  # on so many the exported graph is compared with torch
_PACKAGES: Final = (
    "perennial", "torch", "torchvision", "scikit-learn", "numpy", "pillow", "onnx", "onnxscript", "openvino",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What to train. `images` are used in the splits they come in; `weights` is default, builtin, none or a path;
    `image_size` 0 takes the weights' own; `threads` 0 takes every core; `pretrained_sha256` is what the weights file
    must be; `int8` quantises the graph too, and certifies it; `budget` is the seconds that `auto` may
    spend on choosing a strategy; `target` is a folder of unlabelled images from where the model will be used, to which
    a linear probe is aligned; `teacher` a larger network, NAME or NAME:WEIGHTS, that the backbone learns from first;
    `hardware` what networks are fine-tuned on."""

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
    budget: float = 300.0
    target: str = ""
    teacher: str = ""
    hardware: Hardware = ANY


@dataclass(frozen=True, slots=True)
class Fitted:
    """The bundle, how long it took, and everything that was not used: what was skipped on loading, then the files
    whose header was fine and whose pixels were not."""

    bundle: Bundle
    seconds: float
    skipped: tuple[Skipped, ...] = ()


def fit(
    request: FitRequest,
    *,
    bundles: Path,
    cache: Path,
    limits: ImageLimits,
    backbone: Backbone | None = None,
    progress: Progress = silent,
    log: Log = unlogged,
) -> Fitted:
    """Train from the pretrained checkpoint and write a bundle at `bundles/VERSION`.

    The same request gives the same weights on the same machine. Nothing is registered anywhere.

    Args:
        backbone: what the request says, where whoever asks has loaded it already.

    Raises:
        InvalidParameter: no such strategy or backbone, or one that cannot be exported.
        InvalidSettings: int8 is asked for and NNCF is not installed, or there are too few GPUs.
        WeightsUnavailable, WeightsChanged: the pretrained weights cannot be had, or are not the expected ones.
        InvalidDataset: too few images can be decoded.
        InvalidBundle: the exported graph does not compute what the trained model does.
    """
    started = time.perf_counter()
    if request.strategy not in STRATEGIES:
        raise InvalidParameter(f"there is no strategy {request.strategy!r}; choose from: {', '.join(STRATEGIES)}")
    if request.target and request.strategy not in (AUTO, LINEAR_PROBE):
        raise InvalidParameter(
            f"--target aligns frozen features, so it goes with the strategy linear_probe (or auto), not with "
            f"{request.strategy}"
        )
    if request.int8:
        certify.require_int8()
    threads = request.threads or os.cpu_count() or 1
    with one_thread_a_batch():
        progress(Step("loading the pretrained weights", 0, 1))
        backbone = backbone or backbones.load(
            request.backbone,
            request.weights,
            image_size=request.image_size,
            seed=request.seed,
            expected_sha256=request.pretrained_sha256,
        )
        progress(Step("loading the pretrained weights", 1, 1))
        if request.teacher:
            backbone = _taught(request, backbone, bundles.parent / "weights", cache, threads, limits, progress)
        began = time.perf_counter()
        target, unused = _target(request, backbone, cache, threads, limits, progress)
        embedded = features.embed(
            request.images.rows, backbone, cache, threads=threads, limits=limits, progress=progress
        )
        took = time.perf_counter() - began
        give_back_freed_memory()
        images = datasets.without(request.images, embedded.failures)

        bundles.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=bundles, prefix=".fit-") as work:
            with algebra_threads(embedded.features.size, threads):
                chosen = strategy.choose(
                    images,
                    embedded,
                    backbone,
                    Climb(
                        strategy=LINEAR_PROBE if request.target else request.strategy,
                        seconds=request.budget,
                        seed=request.seed,
                        threads=threads,
                        limits=limits,
                        work=Path(work),
                        cache=cache,
                        embedding=took,
                        progress=progress,
                        target=target,
                        hardware=request.hardware,
                        log=log,
                    ),
                )
                whitening = fit_whitening(chosen.features)
            progress(Step("exporting the graph", 0, 1))
            model = ServedModel(chosen.backbone, chosen.head, chosen.temperature, whitening)
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
            pictures = ReferenceImages(scored)
            outputs = evaluate.score_each(
                graphs, scored, backbone.rule, limits, progress, pictures.look, threads=threads
            )
            certificates = certify.certificates(
                outputs,
                certify.measure_speeds(graphs),
                [images.classes.index(row.label) for row in scored],
                [row.split == "test" for row in scored],
            )
            manifest = _manifest(request, images, embedded, chosen, scored, outputs[FLOAT32], certificates)
            suspects = _likely_label_errors(images, chosen, scored, outputs[FLOAT32])

            def fill(folder: Path) -> None:
                shutil.copyfile(graph_path, folder / GRAPH)
                if INT8 in manifest.precisions:
                    for name in (GRAPH_INT8, GRAPH_INT8_WEIGHTS):
                        shutil.copyfile(Path(work, name), folder / name)
                save_weights(model, folder / WEIGHTS)
                for precision in manifest.precisions:
                    table = reference_table(scored, images.classes, outputs[precision], learnt=chosen.learnt)
                    parquet.write_table(table, folder / reference_name(precision))
                parquet.write_table(pictures.table(), folder / REFERENCE_IMAGES)
                parquet.write_table(dataset_table(images.rows), folder / DATASET)
                report = render(manifest, images, scored, outputs[FLOAT32], suspects, limits)
                (folder / REPORT).write_text(report, "utf-8")

            bundle = write_bundle(bundles, manifest, fill)
    return Fitted(bundle, time.perf_counter() - started, images.skipped + unused)


@contextmanager
def one_thread_a_batch() -> Iterator[None]:
    # Work is shared out by the batch. Threads inside an operation would wait for each other, busily: on cores that
    # also serve, embedding small images took eighteen times as long.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def algebra_threads(size: int, threads: int) -> Iterator[None]:
    """Threads inside the algebra on so many numbers: they pay only where there is enough of it. Of a few thousand rows
    two of them take five times the processor's time that one does."""
    with threadpool_limits(threads if size >= _LARGE else 1, user_api="blas"):
        yield


def _taught(
    request: FitRequest,
    backbone: Backbone,
    kept: Path,
    cache: Path,
    threads: int,
    limits: ImageLimits,
    progress: Progress,
) -> Backbone:
    """The backbone after it has learnt from the teacher on the training images; its weights are a file of its own."""
    from training.distill import learn_from

    name, _, weights = request.teacher.partition(":")
    teacher = backbones.load(name, weights or "default")
    return learn_from(
        backbone, teacher, request.images.of("train"), kept, cache, seed=request.seed, threads=threads, limits=limits,
        progress=progress,
    )  # fmt: skip


def _target(
    request: FitRequest, backbone: Backbone, cache: Path, threads: int, limits: ImageLimits, progress: Progress
) -> tuple[features.Floats | None, tuple[Skipped, ...]]:
    """The features [M, D] of the target's images, and the files there that are none."""
    if not request.target:
        return None, ()
    found = unlabelled.load(Path(request.target).expanduser(), threads=threads, limits=limits, progress=progress)
    embedded = features.embed(found.rows, backbone, cache, threads=threads, limits=limits, progress=progress)
    return embedded.features, found.skipped


def _proof(images: LabelledImages, backbone: Backbone, limits: ImageLimits) -> Pixels:
    rows = images.of("train")[:_PROOF_IMAGES]
    return features.decode(rows, backbone.rule, limits)[1]


def _manifest(
    request: FitRequest,
    images: LabelledImages,
    embedded: Embedded,
    chosen: Chosen,
    scored: Sequence[Row],
    output: GraphOutput,
    certificates: dict[str, Certificate],
) -> Manifest:
    backbone = chosen.backbone
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
        strategy=chosen.strategy,
        why=chosen.why,
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
        temperature=chosen.temperature,
        properties=PROPERTIES,
        precisions=tuple(precision for precision, found in certificates.items() if found.certified),
        certificates=certificates,
        ladder=_priced(chosen.ladder, certificates),
        findings=trust.findings(
            images,
            embedded.rows,
            embedded.features,
            seed=request.seed,
            accuracy=metrics["accuracy"],
            baseline=next((rung.accuracy for rung in chosen.ladder.rungs if rung.name == SIMPLE), None),
        ),
        chance=reference_chance(scored, images.classes, output, learnt=chosen.learnt),
        seed=request.seed,
        parent=request.parent,
        packages={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def _priced(ladder: Ladder, certificates: dict[str, Certificate]) -> Ladder:
    """With what an answer takes, as measured on the graph; every rung that has the same network shares it."""
    took = 1000.0 / certificates[FLOAT32].images_per_second
    without = (MAJORITY, SIMPLE) if ladder.chosen != SIMPLE else tuple(name for name in NAMES if name != SIMPLE)
    return ladder.model_copy(
        update={
            "rungs": tuple(
                rung if rung.name in without else rung.model_copy(update={"milliseconds": round(took, 3)})
                for rung in ladder.rungs
            )
        }
    )


def _likely_label_errors(
    images: LabelledImages, chosen: Chosen, scored: Sequence[Row], output: GraphOutput
) -> list[tuple[Row, LabelError]]:
    """Among the rows whose answer is by a model that was not fitted on them: the selection's and the test ones."""
    at = [place for place, row in enumerate(scored) if row.split == "test"]
    rows = [*chosen.judged, *(scored[place] for place in at)]
    probabilities = np.concatenate([chosen.probabilities, output.probabilities[at].astype(np.float64)])
    labels = np.array([images.classes.index(row.label) for row in rows])
    return [(rows[found.index], found) for found in likely_label_errors(probabilities, labels.tolist())]
