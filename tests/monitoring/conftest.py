"""Real handwriting as a world to watch: images, a classifier, its reference, and the ledger rows its service writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from monitoring.drawing import Drawn, Numbers
from monitoring.drawn import separations, sides
from monitoring.two_sample import Measured
from monitoring.window import Reference, Scores
from perennial import ledger
from perennial.bundle import Bundle, Dataset, Manifest, Pretrained, new_version, upload_bundle, write_bundle
from perennial.graph import FLOAT32, PROPERTIES
from perennial.ids import new_id
from perennial.images import ImageHeader, InputRule
from perennial.ledger import open_ledger
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage
from perennial.thumbnails import thumbnail

Images = NDArray[np.float64]
Change = Callable[[Images], Images]

PLAIN = ImageHeader("PNG", "L", 8, 8)
CLASSES = tuple(str(digit) for digit in range(10))


def dark_and_soft(images: Images) -> Images:
    return np.stack([ndimage.gaussian_filter(image, 0.5) for image in images * 0.7])


def brighter(images: Images) -> Images:
    return np.clip(images + 0.1, 0, 1)


def noisy(images: Images) -> Images:
    return np.clip(images + np.random.default_rng(3).normal(0, 0.15, images.shape), 0, 1)


def turned(images: Images) -> Images:
    return np.rot90(images, axes=(1, 2)).copy()


@dataclass
class World:
    """1,797 images of 8 x 8 in 0..1, a classifier trained on the first 700 of them, 400 held-out reference rows; the
    rest is traffic."""

    images: Images
    digits: NDArray[np.int64]
    pca: PCA
    classifier: LogisticRegression
    traffic: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    reference_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def scores(self, rows: NDArray[Any], change: Change | None = None, *, labelled: bool = True) -> Scores:
        images = self.images[rows] if change is None else change(self.images[rows])
        flat = images.reshape(len(images), -1)
        probabilities = self.classifier.predict_proba(flat).astype(np.float32)
        laplacian = np.stack([ndimage.laplace(image * 255) for image in images])
        brightness, zero = flat.mean(axis=1), np.zeros(len(flat))
        columns = {
            "brightness": brightness, "contrast": flat.std(axis=1), "sharpness": np.log1p(laplacian.var(axis=(1, 2))),
            "smoothness": (1 / (1 + laplacian**2)).mean(axis=(1, 2)), "saturation": zero, "red": brightness,
            "green": brightness, "blue": brightness, "red_green": zero, "yellow_blue": zero,
        }  # fmt: skip
        properties = np.stack([columns[name] for name in PROPERTIES], axis=1)
        return Scores(
            probabilities,
            self.pca.transform(flat).astype(np.float32),
            properties.astype(np.float32),
            np.array([CLASSES[index] for index in probabilities.argmax(axis=1)], dtype=object),
            probabilities.max(axis=1),
            tuple(CLASSES[digit] if labelled else None for digit in self.digits[rows]),
            tuple(f"{row:064x}" for row in rows),
        )

    def reference(self) -> Reference:
        return Reference(
            CLASSES, PROPERTIES, self.scores(self.reference_rows), np.ones(len(self.reference_rows), dtype=bool)
        )


@pytest.fixture(scope="session")
def world() -> World:
    data = load_digits()
    images = data.images / 16.0
    order = np.random.default_rng(0).permutation(len(images))
    train = order[:700]
    flat = images[train].reshape(len(train), -1)
    return World(
        images,
        data.target,
        PCA(32, whiten=True, random_state=0).fit(flat),
        LogisticRegression(C=1.0, max_iter=1000).fit(flat, data.target[train]),
        traffic=order[1100:],
        reference_rows=order[700:1100],
    )


@dataclass
class Deployed:
    """A live model in a ledger, and a way to send it traffic."""

    world: World
    engine: sa.Engine
    settings: Settings
    version: str

    def record(
        self,
        scores: Scores,
        *,
        version: str | None = None,
        labels: Sequence[str | None] | None = None,
        captured: bool = True,
        urls: Sequence[str] | None = None,
        precision: str = FLOAT32,
        header: ImageHeader = PLAIN,
        source: str | None = "test",
        at: datetime | None = None,
    ) -> list[str]:
        """Write rows as the service does, and labels as feedback does. `urls` are where the images were captured."""
        start = at or datetime.now(UTC)
        rows = [
            Prediction(
                id=new_id(int(at.timestamp() * 1000) if at is not None else None),
                at=start + timedelta(milliseconds=index),
                model_version=version or self.version,
                precision=precision,
                label=str(scores.predicted[index]),
                confidence=float(scores.confidence[index]),
                probabilities=scores.probabilities[index],
                embedding=scores.embedding[index],
                properties=scores.properties[index],
                width=header.width,
                height=header.height,
                format=header.format,
                mode=header.mode,
                bytes=100,
                image_digest=scores.digests[index],
                image_url=(urls[index] if urls else f"file:///captures/{index}.png") if captured else None,
                source=source,
                latency_ms=1.0,
            )
            for index in range(len(scores))
        ]
        ledger.predictions.record(self.engine, rows)
        feedback = [
            Feedback(row.id, label, known=label in CLASSES)
            for row, label in zip(rows, labels or [None] * len(rows), strict=True)
            if label
        ]
        if feedback:
            ledger.labels.add(self.engine, feedback)
        return [row.id for row in rows]

    def send(self, count: int = 300, change: Change | None = None, *, labelled: bool = False, seed: int = 0) -> Scores:
        """Traffic of the live model: `count` images that it has not seen."""
        rows = np.random.default_rng(seed).choice(self.world.traffic, count, replace=False)
        scores = self.world.scores(rows, change)
        self.record(scores, labels=scores.labels if labelled else None)
        return scores

    def events(self) -> list[ledger.events.Event]:
        return ledger.events.after(self.engine, self.settings.name)

    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.events() if event.kind is not ledger.EventKind.DEPLOYED]


Deploy = Callable[..., Deployed]


def drawn_of(
    reference: Reference, window: Scores, measured: Measured, *, least_labels: int = 100, name: str = "a test"
) -> Drawn:
    """What Evidently is told of a comparison, without a check."""
    told, tested = Numbers(separations=separations(measured)), list(measured.p_values)
    return Drawn(
        *sides(reference, window, tested), told, len(tested), 0.0015, least_labels, at=datetime.now(UTC), name=name
    )


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of many checks in which no report is looked at: drawing one takes longer than all the rest."""
    monkeypatch.setenv("PERENNIAL_MONITOR__REPORT", "never")


@pytest.fixture
def deploy(world: World, tmp_path: Path) -> Deploy:
    """Puts the digits' model live in a ledger: `deploy(engine, settings)`; `pictured`: with thumbnails."""

    def put(
        engine: sa.Engine,
        settings: Settings,
        held_out: NDArray[np.bool_] | None = None,
        header: ImageHeader | None = None,
        *,
        pictured: bool = False,
    ) -> Deployed:
        bundle = write_digits_bundle(tmp_path / "made", settings.name, world, held_out, header, pictured=pictured)
        url = upload_bundle(bundle, Storage(settings.blobs_url))
        ledger.models.register(engine, bundle, url)
        ledger.deployments.deploy(engine, settings.name, bundle.manifest.version, reason="a test", actor="test")
        return Deployed(world, engine, settings, bundle.manifest.version)

    return put


@pytest.fixture
def sqlite(home: Path, migrated_file: Path) -> Iterator[sa.Engine]:
    """An empty ledger, where it makes no difference which database."""
    home.mkdir(exist_ok=True)
    shutil.copyfile(migrated_file, home / "ledger.sqlite")
    engine = open_ledger(f"sqlite:///{home / 'ledger.sqlite'}")
    yield engine
    engine.dispose()


@pytest.fixture
def watched_settings(home: Path) -> Settings:
    """Settings for windows of 300 rows, of which 100 labels say something; one window opens drift, one closes it."""
    alone = {"open_after": 1, "open_of": 1, "close_after": 1}
    return load_settings(
        name="digits",
        monitor={"window": 300, "min_rows": 200, "min_labels": 100, **alone},
        retrain={"min_labels": 50},
    )


def pixels_of(images: Images) -> NDArray[np.uint8]:
    """[N, 8, 8, 3]"""
    return np.repeat(np.round(images * 255).astype(np.uint8)[..., None], 3, axis=3)


def write_digits_bundle(
    parent: Path,
    name: str,
    world: World,
    held_out: NDArray[np.bool_] | None = None,
    header: ImageHeader | None = None,
    *,
    pictured: bool = False,
) -> Bundle:
    """A bundle as training writes it; the monitor never runs its graph, so the graph is a stand-in. Without a `header`
    it does not say how the reference images came in, as bundles did not at first."""
    scores = world.scores(world.reference_rows)
    kept = np.ones(len(scores), dtype=bool) if held_out is None else held_out

    def fill(folder: Path) -> None:
        for file in ("graph.onnx", "weights.safetensors", "report.html"):
            (folder / file).write_bytes(b"stand-in")
        table = pa.table(
            {
                "id": [f"r{index}" for index in range(len(scores))],
                "image_digest": list(scores.digests),
                "label": list(scores.labels),
                "predicted": list(scores.predicted),
                "confidence": pa.array(scores.confidence, pa.float32()),
                "probabilities": pa.array(list(scores.probabilities), pa.list_(pa.float32())),
                "embedding": pa.array(list(scores.embedding), pa.list_(pa.float32())),
                "properties": pa.array(list(scores.properties), pa.list_(pa.float32())),
                "held_out": pa.array(kept),
                **{key: [value] * len(scores) for key, value in (asdict(header) if header else {}).items()},
            }
        )
        pq.write_table(table, folder / "reference.parquet")
        if pictured:
            shown = [thumbnail(image) for image in pixels_of(world.images[world.reference_rows])]
            table = pa.table({"image_digest": list(scores.digests), "image": shown})
            pq.write_table(table, folder / "reference-images.parquet")

    manifest = Manifest(
        name=name,
        version=new_version(),
        created_at=datetime.now(UTC),
        classes=CLASSES,
        input=InputRule(resize=8, crop=8),
        backbone="none",
        pretrained=Pretrained(source="none", sha256=""),
        strategy="linear_probe",
        why="a test",
        dataset=Dataset(location="digits", fingerprint="digits", train=700, validation=200, test=200),
        metrics={},
        per_class={},
        temperature=1.0,
        properties=PROPERTIES,
        precisions=(FLOAT32,),
        seed=0,
        packages={},
    )
    return write_bundle(parent, manifest, fill)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What the condition gives, once it gives something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")
