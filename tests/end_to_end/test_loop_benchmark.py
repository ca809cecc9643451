"""The loop benchmark sends what it says it sends, counts what it says it counts, and goes on where it was ended."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.loop import plot, repeated
from benchmarks.loop.__main__ import main
from benchmarks.loop.images import Domain, taken
from benchmarks.loop.play import Played, Window
from benchmarks.loop.repeated import Repeated
from benchmarks.loop.streams import (
    ARRIVING,
    CLASSES,
    NEW,
    PAIR,
    PHOTO,
    QUIET,
    RAMP,
    SKETCH,
    SOFT,
    STREAMS,
    SUDDEN,
    SWAPPED,
    Sizes,
    Traffic,
    stream,
)  # fmt: skip
from benchmarks.loop.summary import summary
from benchmarks.transfer import hardware

SIZES = Sizes(windows=6, quiet=3, window=20, labelled=0.3, learnt=70)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the shared data: 30 photos and 20 sketches of each class, a bar that is turned by class."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for kind, count, suffix in (("photo", 30, "jpg"), ("sketch", 20, "png")):
        for turn, label in enumerate(CLASSES):
            (folder / "pacs" / kind / label).mkdir(parents=True)
            for number in range(count):
                low, high = (90, 165) if kind == "photo" else (235, 256)
                image = Image.fromarray(random.integers(low, high, (64, 64, 3), dtype=np.uint8))
                ink = (200, 30 * turn, 40) if kind == "photo" else (0, 0, 0)
                ImageDraw.Draw(image).line((4 + 8 * turn, 4, 60 - 8 * turn, 60), fill=ink, width=6)
                image.save(folder / "pacs" / kind / label / f"{number}.{suffix}")
    return folder


def test_a_stream_changes_where_it_says_so() -> None:
    sizes = replace(SIZES, windows=12)
    sudden, ramp, soft, swapped, arriving, quiet = (
        stream(name, sizes) for name in (SUDDEN, RAMP, SOFT, SWAPPED, ARRIVING, QUIET)
    )
    assert sudden.changes == swapped.changes == arriving.changes == (4,)
    assert [set(moment.mix) for moment in sudden.moments] == 4 * [{PHOTO}] + 8 * [{SKETCH}]
    shares = [moment.mix[SKETCH] for moment in ramp.moments]
    assert shares == sorted(shares)
    assert (shares[ramp.changes[0] - 1], shares[-1]) == (0.0, 1.0)
    assert 0 < shares[ramp.changes[0]] < 0.5
    blurs = [domain.strength for moment in soft.moments for domain in moment.mix]
    assert blurs == sorted(blurs)
    assert blurs[soft.changes[0] - 1] == 0 < blurs[soft.changes[0]] < blurs[-1]
    assert [moment.called(PAIR[0]) for moment in swapped.moments] == 4 * [PAIR[0]] + 8 * [PAIR[1]]
    assert [set(NEW) <= set(moment.classes) for moment in arriving.moments] == 4 * [False] + 8 * [True]
    assert (quiet.changes, len(set(map(id, quiet.moments))), len(quiet.moments)) == ((), 1, SIZES.quiet)


@pytest.mark.parametrize("name", list(STREAMS))
def test_no_image_is_sent_again_once_it_was_labelled(drawn: Path, name: str) -> None:
    traffic = Traffic(drawn, SIZES, seed=1)
    pools = traffic.pools
    for pool in pools.values():
        parts = [set(pool.learnt), set(pool.judged), set(pool.sent)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(pool.paths)
    digests: Counter[str] = Counter()
    for moment, sent in traffic.windows(stream(name, SIZES)):
        assert len(sent) == SIZES.window
        assert sum(one.labelled for one in sent) == SIZES.told
        assert {one.label for one in sent} <= set(moment.classes)
        digests.update(one.digest for one in sent)
    assert max(digests.values()) == 1  # of one image each time another picture
    for pool in pools.values():
        used = set(pool.sent) - set(pool.unlabelled)
        assert not used & set(pool.unlabelled)
    told = sum(len(pool.sent) - len(pool.unlabelled) for pool in pools.values())
    assert told == SIZES.told * len(stream(name, SIZES).moments)
    again = Traffic(drawn, SIZES, seed=1)
    first = next(iter(again.windows(stream(name, SIZES))))[1]
    assert {one.digest for one in first} <= set(digests)


def test_a_change_is_in_the_picture(drawn: Path) -> None:
    path = next((drawn / "pacs" / "photo").glob("*/*.jpg"))
    plain = taken(path, 0, PHOTO)
    for through, strength in (("a soft lens", 4.0), ("the dark", 0.7), ("noise", 40.0), ("a turned camera", 90.0)):
        changed = taken(path, 0, Domain("photo", through, strength))
        assert changed != plain
        assert changed == taken(path, 0, Domain("photo", through, strength))


def test_it_runs_and_goes_on_where_it_was_ended(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    asked = [
        "--streams", SWAPPED, "--windows", "1", "--window", "20", "--train", "70", "--image-size", "32",
        "--backbone", "mobilenet_v3_small", "--weights", "builtin", "--test-data", str(drawn),
        "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--plots", str(tmp_path),
    ]  # fmt: skip
    main([*asked, "--arms", "never,every window,Perennial"])
    assert "window 1 of 1: never" in capsys.readouterr().out
    main([*asked, "--arms", "never,every window,Perennial"])
    assert "window" not in capsys.readouterr().out.split(f"{SWAPPED}:")[0]  # nothing is sent again
    with (tmp_path / f"loop-{hardware()}.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["never", "every window", "Perennial"]
    assert [rows[arm]["retrains"] for arm in rows] == ["0", "1", "0"]
    assert [rows[arm]["deployments"] for arm in rows] == ["0", "1", "0"]
    assert [rows[arm]["labels_used"] for arm in rows] == ["0", "6", "0"]  # six of a window's twenty images
    assert float(rows["never"]["compute_seconds"]) == 0 < float(rows["Perennial"]["check_seconds"])
    assert float(rows["every window"]["training_seconds"]) == float(rows["every window"]["compute_seconds"]) > 0
    assert rows["never"]["mean_accuracy"] == rows["Perennial"]["mean_accuracy"]
    with (tmp_path / f"loop-windows-{hardware()}.csv").open(encoding="utf-8", newline="") as file:
        windows = list(csv.DictReader(file))
    assert Counter(row["arm"] for row in windows) == {"never": 1, "every window": 1, "Perennial": 1}
    assert {row["verdict"] for row in windows if row["arm"] == "never"} == {""}
    assert "" not in {row["verdict"] for row in windows if row["arm"] == "Perennial"}
    assert SWAPPED in (tmp_path / "loop.svg").read_text("utf-8")


def _row(arm: str, accuracy: float, seconds: float, *, name: str = SUDDEN, retrains: int = 1, bad: int = 0) -> Played:
    return Played(name, 0, arm, 200, accuracy, accuracy, retrains, retrains, bad, 60, 60, 0.0, seconds, 1)


def test_the_summary_says_whether_the_targets_are_met() -> None:
    rows = [_row("every window", 0.90, 90.0), _row("Perennial", 0.895, 30.0)]
    assert [line.split(": ")[-1] for line in summary(rows)[-2:]] == ["yes", "yes"]
    rows = [_row("every window", 0.90, 90.0), _row("Perennial", 0.88, 31.0)]
    assert [line.split(": ")[-1] for line in summary(rows)[-2:]] == ["NO", "NO"]
    quiet = [_row("never", 0.9, 0.0, name=QUIET), _row("Perennial", 0.9, 1.0, name=QUIET, retrains=2)]
    assert summary(quiet)[-1].endswith("yes")
    assert summary([quiet[0], replace(quiet[1], retrains=3)])[-1].endswith("NO")
    assert summary([quiet[0], replace(quiet[1], bad_deployments=1)])[-1].endswith("NO")


def test_a_deployment_is_bad_that_loses_more_than_a_point() -> None:
    window = Window(SUDDEN, 0, "Perennial", 3, 0.5, "ok", "promoted", 0.80, 0.795)
    assert (window.deployed, window.bad) == (True, False)
    assert replace(window, after=0.785).bad
    assert not replace(window, before=None, after=None).deployed


def test_five_changes_are_summed_up_by_where_a_retrain_starts() -> None:
    rows = [
        Repeated(0, start, number, "sketches", 0.3, accuracy, 0.1, 0.9, 0.8, 20.0)
        for start, accuracy in (("pretrained, partial", 0.7), ("last model, partial", 0.6))
        for number in range(1, 6)
    ]
    lines = repeated.summary(rows)
    assert len(lines) == 3
    assert "accuracy 0.700" in lines[1]
    assert repeated.summary([]) == []


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    windows = [
        Window(name, 0, arm, number, 0.9, "ok", "", 0.9 if number == 2 else None, 0.8 if number == 2 else None)
        for name in (SUDDEN, QUIET)
        for arm in ("never", "Perennial")
        for number in range(60)
    ]
    streams = {name: stream(name, SIZES) for name in STREAMS}
    for name in ("one.svg", "two.svg"):
        plot.draw(windows, streams, tmp_path / name)
    picture = (tmp_path / "one.svg").read_text("utf-8")
    assert picture == (tmp_path / "two.svg").read_text("utf-8")
    assert all(text in picture for text in (SUDDEN, QUIET, "Perennial", "never"))


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--streams", "nonesuch"])
    assert "'nonesuch' is none of: sketches at once" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="name the shared data with --test-data"):
        main(["--streams", SUDDEN, "--test-data", str(tmp_path), "--no-write"])
