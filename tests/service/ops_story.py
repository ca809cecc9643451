"""A model's life as the operations page tells it: real rows in a real ledger, and moments that lie in the past."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image, ImageDraw, ImageFilter

from perennial.intervals import accuracy_interval
from perennial.ledger import EventKind, checks, deployments, events, labels, rejected_images, watches
from perennial.ledger.rejected_images import RejectedImages
from perennial.ledger.schema import checks as check_rows
from perennial.ledger.schema import deployments as deployment_rows
from perennial.ledger.schema import events as event_rows
from perennial.ledger.schema import models as model_rows
from perennial.ledger.schema import traffic as traffic_rows
from perennial.ledger.watches import WatchedRow
from perennial.storage import reference_key
from tests.service.conftest import World

CLASSES = ("berry", "leaf", "sky")  # red, green, blue
CALM = {"properties": 0.09, "output": 0.06, "class_mix": 0.03, "embedding": 0.52, "novelty": 0.004}
FLOORS = {"properties": 0.25, "output": 0.2, "class_mix": 0.1, "embedding": 0.6, "novelty": 0.02}
DARK = {"properties": 1.31, "output": 0.27, "class_mix": 0.06, "embedding": 0.83, "novelty": 0.05}


def scene(label: str, seed: int, *, dark: bool = False, form: str = "JPEG") -> bytes:
    """A picture of a berry, a leaf or the sky, by day or through a dark lens."""
    rng = np.random.default_rng(seed)
    if label == "sky":
        image = Image.new("RGB", (160, 160), (86, 140, 222))
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y, r = (int(each) for each in rng.integers((0, 0, 12), (150, 150, 30)))
            draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=(196, 214, 245))
    else:
        image = Image.new("RGB", (160, 160), (196, 200, 182) if label == "leaf" else (214, 196, 186))
        draw = ImageDraw.Draw(image)
        x, y = (int(each) for each in rng.integers(60, 100, 2))
        if label == "leaf":
            draw.ellipse((x - 32, y - 62, x + 32, y + 62), fill=(56, 142, 60))
            draw.line((x, y - 58, x, y + 70), fill=(32, 96, 40), width=4)
            image = image.rotate(int(rng.integers(-50, 50)), fillcolor=(196, 200, 182))
        else:
            for _ in range(5):
                dx, dy = (int(each) for each in rng.integers(-38, 38, 2))
                draw.ellipse((x + dx - 24, y + dy - 24, x + dx + 24, y + dy + 24), fill=(198, 34, 52))
                draw.ellipse((x + dx - 12, y + dy - 15, x + dx - 4, y + dy - 7), fill=(240, 150, 160))
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    pixels = np.asarray(image) * (0.3 if dark else 1.0) + rng.normal(0, 2, (160, 160, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, form, quality=88)
    return buffer.getvalue()


def estimate(value: float, rows: int) -> dict[str, float]:
    return accuracy_interval(round(value * rows), rows).model_dump()


@dataclass(slots=True)
class Story:
    """Writes to a world's ledger what the watcher and people would have."""

    world: World
    now: datetime

    @property
    def name(self) -> str:
        return self.world.settings.name

    def ago(self, hours: float) -> datetime:
        return self.now - timedelta(hours=hours)

    def publish(
        self, at: datetime, *, parent: str | None = None, accuracy: float = 0.95, classes: Sequence[str] = CLASSES
    ) -> str:
        version = self.world.publish(classes)
        with self.world.engine.begin() as connection:
            row = connection.execute(
                sa.select(model_rows.c.manifest).where(model_rows.c.version == version)
            ).scalar_one()
            manifest = {**row, "metrics": {"accuracy": estimate(accuracy, 320)}}
            changed = {"created_at": at, "parent": parent, "manifest": manifest}
            connection.execute(sa.update(model_rows).where(model_rows.c.version == version).values(**changed))
        return version

    def deploy(self, version: str, at: datetime, *, reason: str, actor: str, back: bool = False) -> None:
        if back:
            done = deployments.roll_back(self.world.engine, self.name, reason=reason, actor=actor)
        else:
            done = deployments.deploy(self.world.engine, self.name, version, reason=reason, actor=actor)
        self._date(deployment_rows, done.id, at)
        self._date(event_rows, done.event_id, at)

    def event(self, kind: EventKind, at: datetime, **detail: Any) -> None:
        self._date(event_rows, events.add(self.world.engine, self.name, kind, detail), at)

    def traffic(self, version: str, start: datetime, end: datetime, a_minute: float, *, rejected: int = 0) -> None:
        """A day has a busy noon and a quiet night."""
        rng = np.random.default_rng(7)
        at = start.replace(second=0, microsecond=0)
        rows, refused = [], []
        while at < end:
            hour = at.hour + at.minute / 60
            mean = a_minute * (1.15 - 0.85 * math.cos((hour - 3) / 12 * math.pi))
            rows.append({"at": at, "model_version": version, "answered": int(rng.poisson(mean))})
            if rejected and rng.random() < 0.02:
                refused.append(RejectedImages(version, at, "truncated-image", int(rng.integers(1, rejected + 1))))
            at += timedelta(minutes=1)
        with self.world.engine.begin() as connection:
            connection.execute(sa.insert(traffic_rows), rows)
        rejected_images.add(self.world.engine, refused)

    def check(
        self,
        version: str,
        at: datetime,
        *,
        verdict: str = "ok",
        state: str = "healthy",
        why: str = "",
        accuracy: float = 0.96,
        labelled: int = 412,
        scores: Mapping[str, float] = CALM,
        examples: Sequence[Mapping[str, Any]] = (),
        retrain: tuple[bool, str] = (False, "nothing says that accuracy was lost"),
    ) -> None:
        families = {
            name: {"score": score, "floor": FLOORS[name], "alarm": score >= FLOORS[name], "skipped": None}
            for name, score in scores.items()
        }
        window = {"rows": 1000, "start": (at - timedelta(hours=2)).isoformat(), "end": at.isoformat()}
        detail = {
            "verdict": verdict,
            "state": state,
            "causes": [{"cause": verdict, "why": why, "columns": []}] if why else [],
            "scores": dict(scores),
            "families": families,
            "accuracy": {
                "labels": estimate(accuracy, labelled) if labelled >= 200 else None,
                "labelled": labelled,
                "estimated": estimate(min(1.0, accuracy + 0.008), 700),
                "withheld": None,
            },
            "retrain": {"due": retrain[0], "why": retrain[1]},
            "examples": [dict(each) for each in examples],
        }
        number = checks.record(
            self.world.engine, name=self.name, model_version=version, window=window, verdict=verdict, detail=detail,
            report_url=None,
        )  # fmt: skip
        self._date(check_rows, number, at)

    def examples(self, version: str, prediction_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Of captured images, each beside three reference images whose pictures are in the storage."""
        found = []
        for place, prediction_id in enumerate(prediction_ids):
            label = CLASSES[place % 3]
            nearest = []
            for near in range(3):
                digest = f"{place * 3 + near:064x}"
                picture = scene(label, 900 + place * 3 + near)
                self.world.storage.write(reference_key(self.name, version, digest), picture)
                nearest.append({"digest": digest, "label": label, "predicted": label})
            found.append(
                {
                    "prediction_id": prediction_id,
                    "why": "drifted",
                    "drift": 0.99,
                    "predicted": label,
                    "confidence": 0.61 + 0.04 * place,
                    "label": CLASSES[(place + 1) % 3] if place % 4 == 1 else None,
                    "stands_out": ["brightness", -3.1 - 0.2 * place],
                    "nearest": nearest,
                }
            )
        return found

    def _date(self, table: sa.Table, number: int, at: datetime) -> None:
        with self.world.engine.begin() as connection:
            connection.execute(sa.update(table).where(table.c.id == number).values(at=at))


def begin(world: World) -> Story:
    return Story(world, datetime.now(UTC))


def grown(story: Story) -> tuple[str, str]:
    """Four days: a first model, one that was promoted and taken back, drift. Returns the live and the other version."""
    first = story.publish(story.ago(90), accuracy=0.95)
    story.deploy(first, story.ago(89), reason="first model", actor="cli ann")
    second = story.publish(story.ago(20), parent=first, accuracy=0.955)
    story.event(EventKind.GATE_PASSED, story.ago(19.6), version=second, champion=first, why="better on 61 of 84 images")
    story.deploy(second, story.ago(19.5), reason="passed the gate", actor="watch")
    story.deploy(first, story.ago(14), reason="wrong on wet leaves", actor="key ann, http 10.0.0.7", back=True)
    story.traffic(first, story.ago(89), story.ago(19.5), 9, rejected=2)
    story.traffic(second, story.ago(19.5), story.ago(14), 9, rejected=2)
    story.traffic(first, story.ago(14), story.now, 9, rejected=3)
    rng = np.random.default_rng(3)
    for hours in np.arange(88, 2.4, -0.75):
        version = second if 14 < hours < 19.5 else first
        scores = {name: score * rng.uniform(0.94, 1.06) for name, score in CALM.items()}
        accuracy = (0.93 if version == second else 0.962) + rng.normal(0, 0.006)
        story.check(version, story.ago(hours), accuracy=accuracy, scores=scores, labelled=int(rng.integers(230, 430)))
    return first, second


def drifting(story: Story, version: str, examples: Sequence[Mapping[str, Any]] = ()) -> None:
    """The last two hours: a dark lens."""
    why = "brightness fell by 1.3 standard deviations, contrast by 0.9; the images of each class changed alike"
    retrain = (False, "accuracy 0.955 -> 0.871 on 318 labels, but only 43 labelled images are at hand: label 57 more")
    for hours, part in ((1.8, 0.5), (1.2, 0.8), (0.6, 0.95)):
        scores = {name: CALM[name] + part * (DARK[name] - CALM[name]) for name in CALM}
        story.check(
            version, story.ago(hours), verdict="sensor_shift", state="suspected" if part < 0.7 else "drifting",
            why=why, accuracy=0.955 - 0.08 * part, labelled=318, scores=scores, retrain=retrain,
        )  # fmt: skip
    story.event(
        EventKind.DRIFT_OPENED, story.ago(1.2), verdict="sensor_shift", model_version=version,
        causes=[{"cause": "sensor_shift", "why": why}],
    )  # fmt: skip
    story.check(
        version, story.now - timedelta(minutes=3), verdict="sensor_shift", state="drifting", why=why, accuracy=0.871,
        labelled=318, scores=DARK, examples=examples, retrain=retrain,
    )  # fmt: skip


def watched(
    story: Story, answers: Sequence[Mapping[str, Any]], *, right: Sequence[bool], before: Sequence[bool]
) -> None:
    """Labels for answers of the watched model by which it was right or not, and whether the model before it was."""
    engine, watch = story.world.engine, watches.open_watch(story.world.engine, story.name)
    assert watch is not None
    rows = {row.prediction.id: row.prediction for row in story.world.latest(watch.version)}
    for answer, is_right, was_right in zip(answers, right, before, strict=True):
        row = rows[answer["prediction_id"]]
        other = next(each for each in CLASSES if each != row.label)
        label = row.label if is_right else other
        said = label if was_right else next(each for each in CLASSES if each != label)
        labels.add(engine, [labels.Feedback(row.id, label)])
        with engine.begin() as connection:
            watches.add(
                connection,
                watch.deployment,
                [WatchedRow(row.id, row.image_digest, row.label, row.confidence, said, row.confidence)],
            )
