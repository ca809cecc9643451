from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from perennial.errors import InvalidSettings
from training import run_log
from training.finetune import EpochDone


def test_a_csv_log_holds_what_was_written_as_it_comes(tmp_path: Path) -> None:
    with run_log.opened("csv", tmp_path / "logs", "steel") as log:
        assert log.folder is not None
        assert log.folder.parent == tmp_path / "logs" / "steel"
        log.write("linear_probe", {"rung_accuracy": 0.9}, 0)
        run_log.log_epoch(log.write, "partial", EpochDone(1, 0.8, 0.7, 1e-3, 120.0))
        run_log.log_epoch(log.write, "partial", EpochDone(2, math.nan, 0.5, 5e-4, 130.0))
        rows = list(csv.DictReader((log.folder / "metrics.csv").read_text("utf-8").splitlines()))  # before it ends
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["partial/loss"] for row in rows] == ["", "0.7", "0.5"]
    assert [row["partial/accuracy"] for row in rows] == ["", "0.8", ""]  # nothing was judged
    assert rows[0]["linear_probe/rung_accuracy"] == "0.9"


def test_without_a_log_nothing_is_written(tmp_path: Path) -> None:
    with run_log.opened("none", tmp_path / "logs", "steel") as log:
        log.write("partial", {"loss": 1.0}, 1)
        assert log.folder is None
    assert not list(tmp_path.iterdir())


def test_where_tensorboard_is_missing_the_extra_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "find_spec", lambda name: None)
    with (
        pytest.raises(InvalidSettings, match=r"pip install 'perennial\[tensorboard\]'"),
        run_log.opened("tensorboard", tmp_path, "steel"),
    ):
        raise AssertionError("it was opened")


def test_tensorboard_gets_an_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with run_log.opened("tensorboard", tmp_path, "steel") as log:
        log.write("partial", {"loss": 1.0}, 1)
        assert log.folder is not None
    assert list(log.folder.glob("events.out.tfevents.*"))
