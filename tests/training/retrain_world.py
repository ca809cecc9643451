"""A world to retrain in: a real champion live in a ledger, its storage, and traffic that its graph answers."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import sqlalchemy as sa
import torch
import torchvision
from PIL import Image, ImageDraw, ImageOps

from perennial.bundle import Bundle
from perennial.graph import Graph, GraphOutput
from perennial.ids import new_id
from perennial.images import ImageLimits, InputRule, prepare
from perennial.ledger import EventKind, deployments, events, labels, open_ledger, predictions
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage, capture_key, sha256
from training import datasets
from training.fit import FitRequest, fit
from training.publish import publish
from training.retrain import retrain
from training.retrain_run import RetrainResult

COLOURS = {"blue": (40, 60, 220), "green": (40, 190, 70), "red": (220, 50, 40)}
CLASSES = tuple(COLOURS)
#: A class that the champion does not know.
STRANGE = "yellow"
_PAINT = {**COLOURS, STRANGE: (250, 230, 20)}
SIDE = 48
SEED = 3


@functools.cache  # every world serves the same ones
def picture(label: str, number: int, *, inverted: bool = False) -> bytes:
    """A disc of the class's colour on noise, as PNG; another one for each number."""
    random = np.random.default_rng([number, list(_PAINT).index(label)])
    ground = Image.fromarray(random.integers(90, 165, (SIDE, SIDE, 3), dtype=np.uint8))
    x, y, radius = random.integers(18, 30), random.integers(18, 30), random.integers(13, 18)
    ImageDraw.Draw(ground).ellipse((x - radius, y - radius, x + radius, y + radius), fill=_PAINT[label])
    file = io.BytesIO()
    (ImageOps.invert(ground) if inverted else ground).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 original images a class."""
    folder = tmp_path_factory.mktemp("photos")
    for label in CLASSES:
        (folder / label).mkdir()
        for number in range(60):
            (folder / label / f"{number}.png").write_bytes(picture(label, number))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, but in a file, so that it has a digest."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def champion(photos: Path, checkpoint: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    images = datasets.load(str(photos), validation=0.15, test=0.3, seed=SEED)
    request = FitRequest(images, "default", "squeezenet1_1", str(checkpoint), "linear_probe", SIDE, SEED, 1)
    return fit(request, bundles=tmp_path_factory.mktemp("champion"), cache=shared_cache, limits=ImageLimits()).bundle


@functools.cache
def answering(path: Path) -> Graph:
    """A bundle's graph, compiled once for all the worlds that it answers in: it keeps nothing of what it is asked."""
    return Graph(path, threads=1)


@functools.cache
def answer(graph: Graph, rule: InputRule, data: bytes) -> GraphOutput:
    """What a graph says of an image: every world serves the same ones."""
    return graph.run(prepare(data, rule).pixels[None])


@dataclass
class World:
    """One ledger and storage with the champion live, and traffic that its graph answers."""

    engine: sa.Engine
    settings: Settings
    storage: Storage
    champion: Bundle
    graph: Graph
    served: int = 1000
    true: dict[str, str] = field(default_factory=dict)

    def serve(
        self, count: int, *, inverted: bool = False, relabel: Callable[[str], str] | None = None
    ) -> list[Prediction]:
        """Answer `count` images and keep them; with `relabel` each gets a label made from its true one."""
        rows = []
        for _ in range(count):
            self.served += 1
            label = CLASSES[self.served % 3]
            rows.append(self._answer(picture(label, self.served, inverted=inverted)))
            self.true[rows[-1].id] = label
        predictions.record(self.engine, rows)
        if relabel is not None:
            self.label(rows, relabel)
        return rows

    def label(self, rows: Sequence[Prediction], relabel: Callable[[str], str]) -> None:
        """Give each a label made from its true one."""
        labels.add(self.engine, [Feedback(row.id, relabel(self.true[row.id])) for row in rows])

    def serve_strange(self, count: int, label: str = STRANGE) -> list[Prediction]:
        """Answer `count` images of a class that the champion does not know, and label them."""
        rows = []
        for _ in range(count):
            self.served += 1
            rows.append(self._answer(picture(STRANGE, self.served)))
        predictions.record(self.engine, rows)
        labels.add(self.engine, [Feedback(row.id, label, known=label in CLASSES) for row in rows])
        return rows

    def request(self, verdict: str = "data_drift", **window: Any) -> int:
        detail = {"why": f"accuracy fell: {verdict}", "verdict": verdict, "window": window}
        return events.add(self.engine, "default", EventKind.RETRAIN_REQUESTED, detail)

    def retrain(self, *, if_due: bool = True, reason: str = "") -> RetrainResult:
        return retrain(self.engine, self.settings, if_due=if_due, reason=reason)

    def kinds(self) -> list[str]:
        return [str(event.kind) for event in events.after(self.engine, "default")]

    @property
    def live(self) -> str:
        return deployments.live(self.engine, "default").version

    def _answer(self, data: bytes) -> Prediction:
        output = answer(self.graph, self.champion.manifest.input, data)
        digest = sha256(data)
        return Prediction(
            id=new_id(),
            at=datetime.now(UTC),
            model_version=self.champion.manifest.version,
            precision="float32",
            label=self.champion.manifest.classes[int(output.probabilities[0].argmax())],
            confidence=float(output.probabilities[0].max()),
            probabilities=output.probabilities[0],
            embedding=output.embedding[0],
            properties=output.properties[0],
            width=SIDE,
            height=SIDE,
            format="PNG",
            mode="RGB",
            bytes=len(data),
            image_digest=digest,
            image_url=self.storage.write(capture_key(digest, "PNG"), data),
            source=None,
            latency_ms=1.0,
        )


#: What the tests set, by section.
CHOSEN: Final[dict[str, dict[str, Any]]] = {
    "train": {"threads": 1, "test": 0.3},
    "retrain": {"fresh_holdout": 0.4, "min_labels": 60, "margin": 0.04},
}


@pytest.fixture
def world(home: Path, champion: Bundle, shared_cache: Path) -> Iterator[World]:
    yield from begin(home, champion, shared_cache)


def begin(home: Path, champion: Bundle, cache: Path, database_url: str = "") -> Iterator[World]:
    """A home in which the champion is live."""
    home.mkdir()
    (home / "cache").symlink_to(cache)
    settings = load_settings(home=home, database_url=database_url, **CHOSEN)
    engine = open_ledger(settings.ledger_url)
    storage = Storage(settings.blobs_url)
    publish(champion, engine, storage)
    deployments.deploy(engine, "default", champion.manifest.version, reason="first", actor="test")
    yield World(engine, settings, storage, champion, answering(champion.graph))
    engine.dispose()


def truth(label: str) -> str:
    return label
