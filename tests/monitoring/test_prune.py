"""Reports are megabytes each: the newest are kept, the checks they belong to all are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from monitoring.prune import prune_reports
from perennial.ledger import checks, schema
from perennial.storage import Storage


def record(engine: sa.Engine, report_url: str | None, name: str = "digits", verdict: str = "ok") -> int:
    return checks.record(
        engine, name=name, model_version="v", window={"rows": 1}, verdict=verdict, detail={}, report_url=report_url
    )


def test_old_reports_are_deleted_and_their_checks_stay(engine: sa.Engine, tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path / 'storage'}")
    urls = [storage.write(f"reports/digits/{number}.html", b"report") for number in range(5)]
    for url in urls:
        record(engine, url)
        record(engine, None)
    record(engine, storage.write("reports/other/0.html", b"report"), name="other")
    record(engine, "s3://somewhere-else/reports/9.html")
    storage.delete(storage.key_of(urls[0]))  # somebody was here before

    assert prune_reports(engine, storage, "digits", keep=3) == 3
    kept = [row.report_url for row in checks.latest(engine, "digits", 100)]
    assert len(kept) == 11
    assert [url for url in kept if url] == ["s3://somewhere-else/reports/9.html", urls[4], urls[3]]
    assert [storage.exists(storage.key_of(url)) for url in urls] == [False, False, False, True, True]
    assert storage.exists("reports/other/0.html")
    assert prune_reports(engine, storage, "digits", keep=3) == 0


def test_a_report_that_shows_captured_images_goes_when_they_would(engine: sa.Engine, tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path / 'storage'}")
    urls = [storage.write(f"reports/digits/{number}.html", b"report") for number in range(3)]
    ids = [
        record(engine, url, verdict=verdict)
        for url, verdict in zip(urls, ("data_drift", "ok", "data_drift"), strict=True)
    ]
    then = datetime.now(UTC) - timedelta(days=8)
    with engine.begin() as connection:
        connection.execute(sa.update(schema.checks).where(schema.checks.c.id.in_(ids[:2])).values(at=then))
    assert prune_reports(engine, storage, "digits", keep=10) == 0
    assert prune_reports(engine, storage, "digits", keep=10, images_days=9) == 0
    assert prune_reports(engine, storage, "digits", keep=10, images_days=7) == 1
    assert [storage.exists(storage.key_of(url)) for url in urls] == [False, True, True]
    assert [row.report_url for row in checks.latest(engine, "digits", 10)] == [urls[2], urls[1], None]
