"""A home with a live model: it answers images, and its ledger holds what was answered and what people say of it."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import sqlalchemy as sa

from benchmarks.loop.images import Sent
from benchmarks.loop.streams import Sizes
from perennial.bundle import DATASET, Bundle, fetch_bundle
from perennial.graph import FLOAT32, Graph, GraphOutput
from perennial.ids import new_id
from perennial.images import ImageLimits, Pixels, prepare, read_header
from perennial.ledger import EventKind, deployments, events, labels, models, open_ledger, predictions
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.settings import Settings, load_settings
from perennial.storage import Storage, capture_key
from training.publish import publish

NAME: Final = "loop"
_BATCH: Final = 32
_DEFAULT_WINDOW: Final = 1000  # of the settings, which the counts beside it are meant for


@dataclass
class Clock:
    """Processor seconds of this process and of its children, by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = _processor_seconds()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + _processor_seconds() - began


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def settings_of(home: Path, sizes: Sizes) -> Settings:
    """The defaults, with every count of rows or labels brought from a window of 1,000 to one of this size, and no
    cooldown, for here a window takes a second."""
    home.mkdir(parents=True, exist_ok=True)
    config = home / "perennial.toml"
    config.write_text("# The benchmark's own, so that no settings of this folder's apply.\n", "utf-8")
    plain = Settings()
    share = sizes.window / _DEFAULT_WINDOW
    return load_settings(
        config,
        home=home,
        name=NAME,
        train={"threads": 1},
        monitor={
            "window": sizes.window,
            "min_rows": max(2, round(share * plain.monitor.min_rows)),
            "min_labels": max(1, round(share * plain.monitor.min_labels)),
            "report": "never",
            "workspace": False,
        },
        retrain={
            "min_labels": max(1, round(share * plain.retrain.min_labels)),
            "watch_labels": max(1, round(share * plain.retrain.watch_labels)),
            "new_class_labels": max(1, round(share * plain.retrain.new_class_labels)),
            "cooldown": 0.0,
        },
    )


class Site:
    """One arm's ledger, storage and live model."""

    def __init__(self, home: Path, cache: Path, sizes: Sizes, first: Bundle) -> None:
        self.settings = settings_of(home, sizes)
        # Each arm embeds what it is taught; the original images are embedded already.
        shutil.copytree(cache / "embeddings", self.settings.cache_path / "embeddings", dirs_exist_ok=True)
        self.engine: sa.Engine = open_ledger(self.settings.ledger_url)
        self.storage = Storage(self.settings.blobs_url)
        self.limits = ImageLimits(self.settings.serve.max_bytes, self.settings.serve.max_pixels)
        self.clock = Clock()
        self.first = first.manifest.version
        publish(first, self.engine, self.storage)
        deployments.deploy(self.engine, NAME, self.first, reason="the first model", actor="benchmark")
        self.live()

    @property
    def version(self) -> str:
        """What is live."""
        return deployments.live(self.engine, NAME).version

    def live(self) -> Bundle:
        """The live bundle; its graph answers from now on."""
        model = models.get(self.engine, NAME, self.version)
        bundle = fetch_bundle(model.bundle_url, model.digest, self.storage, self.settings.cache_path)
        if getattr(self, "bundle", None) is None or self.bundle.digest != bundle.digest:
            self.bundle, self.graph = bundle, Graph(bundle.graph, threads=1)
        return self.bundle

    def serve(self, sent: Sequence[Sent], known: dict[tuple[str, str], GraphOutput]) -> float:
        """Answer images, and record them with their captures and labels; the share that is answered rightly.

        Args:
            known: by bundle and image what another arm's same model has just answered.
        """
        bundle, answers = self.live(), self._answers(sent, known)
        classes = bundle.manifest.classes
        rows, told, right = [], [], 0
        for one, output in zip(sent, answers, strict=True):
            said = classes[int(output.probabilities[0].argmax())]
            right += said == one.label
            rows.append(self._prediction(one, said, output))
            if one.labelled:
                told.append(Feedback(rows[-1].id, one.label, known=one.label in classes))
        predictions.record(self.engine, rows)
        labels.add(self.engine, told)
        return right / len(sent)

    def _answers(self, sent: Sequence[Sent], known: dict[tuple[str, str], GraphOutput]) -> list[GraphOutput]:
        digest = self.bundle.digest
        new = [one for one in sent if (digest, one.digest) not in known]
        for start in range(0, len(new), _BATCH):
            some = new[start : start + _BATCH]
            output = self.graph.run(pixels_of([one.data for one in some], self.bundle))
            for at, one in enumerate(some):
                known[digest, one.digest] = GraphOutput(
                    output.probabilities[at : at + 1], output.embedding[at : at + 1], output.properties[at : at + 1]
                )
        return [known[digest, one.digest] for one in sent]

    def _prediction(self, one: Sent, said: str, output: GraphOutput) -> Prediction:
        digest = one.digest
        header = read_header(one.data, self.limits)
        return Prediction(
            id=new_id(), at=datetime.now(UTC), model_version=self.bundle.manifest.version, precision=FLOAT32,
            label=said, confidence=float(output.probabilities[0].max()), probabilities=output.probabilities[0],
            embedding=output.embedding[0], properties=output.properties[0], width=header.width,
            height=header.height, format=header.format, mode=header.mode, bytes=len(one.data),
            image_digest=digest,
            # What nobody labels is never trained on, and would only fill the disk.
            image_url=self.storage.write(capture_key(digest, header.format), one.data) if one.labelled else None,
            source=None, latency_ms=1.0,
        )  # fmt: skip

    def retrains(self) -> int:
        """How many times a retrain was started."""
        return sum(1 for _ in self._events(EventKind.RETRAIN_STARTED))

    def refusals(self) -> int:
        """How many challengers the gate did not let pass."""
        return sum(1 for _ in self._events(EventKind.GATE_REFUSED))

    def labels_used(self) -> int:
        """Distinct labelled captures that any model was trained or judged on."""
        used: set[str] = set()
        for path in (self.settings.home_path / "models").glob(f"*/{DATASET}"):
            table = pq.read_table(path, columns=["image_digest", "origin"]).to_pydict()
            used |= {
                digest for digest, origin in zip(table["image_digest"], table["origin"], strict=True)
                if origin == "capture"
            }  # fmt: skip
        return len(used)

    def close(self) -> None:
        self.engine.dispose()

    def _events(self, kind: EventKind) -> Iterator[Mapping[str, object]]:
        last = 0
        while page := events.after(self.engine, NAME, last, kinds=[kind]):
            yield from (event.detail for event in page)
            last = page[-1].id


def pixels_of(images: Sequence[bytes], bundle: Bundle) -> Pixels:
    """[N, H, W, 3] as the bundle's graph takes them."""
    return np.stack([prepare(data, bundle.manifest.input).pixels for data in images])
