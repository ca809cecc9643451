"""Images that cannot be read are counted in the ledger, by minute, version and reason, whoever counts them."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from monitoring.collection import examine
from monitoring.decode_failures import read_failures
from monitoring.window import read_window
from perennial.errors import InvalidImage, LedgerUnavailable
from perennial.ledger import rejected_images, schema
from perennial.settings_sections import MonitorSettings
from service import rejections
from service.rejections import Rejections
from tests.service.conftest import Server, picture, wait


class Away:
    """A ledger that is away until it is given one."""

    def __init__(self) -> None:
        self.engine: sa.Engine | None = None

    def __call__(self) -> sa.Engine:
        if self.engine is None:
            raise LedgerUnavailable("the database does not answer")
        return self.engine


def test_several_workers_add_up_and_nothing_is_lost(engine: sa.Engine) -> None:
    workers = [Rejections(lambda: engine) for _ in range(3)]

    def count(worker: Rejections) -> None:
        for number in range(400):
            worker.add("v1" if number % 4 else "v2", "empty-image" if number % 2 else "truncated-image")
            if number % 100 == 0:
                worker._deliver()  # beside its own thread, and the other workers'

    threads = [threading.Thread(target=count, args=(worker,)) for worker in workers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.close(10)
        assert worker.waiting == 0
    assert rejected_images.count_since(engine, "v1", None) == {"empty-image": 1200, "truncated-image": 600}
    assert rejected_images.count_since(engine, "v2", None) == {"truncated-image": 600}
    with engine.connect() as connection:
        rows = connection.execute(sa.select(schema.rejected_images)).all()
    assert len(rows) <= 3 * 2, "a row a minute, version and reason"
    assert all(row.at.second == 0 for row in rows)


def test_while_the_ledger_is_away_counts_wait_bounded_and_then_arrive(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.time()
    away = Away()
    counted = Rejections(away)
    for minute in range(3000):
        with monkeypatch.context() as later:
            later.setattr(rejections.time, "time", lambda minute=minute: began + 60 * minute)
            counted.add("v1", "empty-image")
    assert len(counted._waiting) <= 1000
    assert wait(lambda: "counts of rejected images wait for the ledger" in caplog.text, 5)
    assert counted.waiting == 3000
    assert rejected_images.count_since(engine, "v1", None) == {}
    away.engine = engine
    counted.close(10)
    assert counted.waiting == 0
    assert rejected_images.count_since(engine, "v1", None) == {"empty-image": 3000}
    middle = datetime.fromtimestamp(began, UTC) + timedelta(minutes=1500)
    assert rejected_images.count_since(engine, "v1", middle)["empty-image"] == pytest.approx(1500, abs=10)
    assert caplog.text.count("wait for the ledger") == 1


def test_what_is_not_brought_in_by_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    counted = Rejections(Away())
    counted.add("v1", "empty-image")
    counted.close(5)
    assert "1 images that could not be read are not counted in the ledger" in caplog.text


def test_a_server_counts_every_image_it_cannot_read_and_a_check_sees_them(shared_server: Server) -> None:
    server, engine = shared_server, shared_server.world.engine
    version = next(iter(server.world.classes))
    time.sleep(1.5)  # other tests' are in by then
    before = rejected_images.count_since(engine, version, None)
    cut = picture("red", seed=1)[:-500]
    for _ in range(25):
        assert server.post("/v1/predict", cut).status_code == 400
    assert server.http.post("/classify", files={"image": ("a.jpg", b"a text")}).status_code == 400
    files = [("images", (str(number), data)) for number, data in enumerate((b"", picture("red"), b"", b"%PDF-1.7"))]
    assert server.http.post("/v1/predict/batch", files=files).status_code == 200
    assert server.post("/v1/predict", b"\x00" * 40_000_000).status_code == 413
    # None of these is an image that could not be read.
    assert server.post("/v1/feedback", b" " * (5 * 2**20)).status_code == 413
    assert server.http.post("/v1/predict?top=0", content=cut).status_code == 422
    assert server.predict(picture("green"))["label"] == "green"

    expected = {
        "truncated-image": 25, "invalid-image": 1, "empty-image": 2, "unsupported-image-format": 1, "too-many-bytes": 1,
    }  # fmt: skip
    assert set(expected) <= {InvalidImage.slug, *(kind.slug for kind in InvalidImage.__subclasses__())}

    def counted() -> dict[str, int]:
        found = rejected_images.count_since(engine, version, None)
        return {reason: images - before.get(reason, 0) for reason, images in found.items()}

    assert wait(lambda: sum(counted().values()) == 30, 10), counted()
    assert {reason: images for reason, images in counted().items() if images} == expected

    server.world.settle()
    window = read_window(engine, version, 2, 500)
    failures = read_failures(engine, version, window)
    assert failures.by_reason["truncated-image"] >= 25
    assert failures.uploads >= 32
    assert "could not be read" in examine(None, window, failures, MonitorSettings(min_rows=2)).faults[0]
