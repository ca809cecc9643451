"""The training benchmark's arithmetic, the tasks it makes, and each part of it on a handful of real images."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.training import __main__ as command
from benchmarks.training import (
    draws,
    few_images,
    ladder,
    plot,
    results,
    tasks,
    time_to_accuracy,
    verdicts,
)
from benchmarks.training.fitting import Recipe
from benchmarks.training.results import Measurement, Sheet
from benchmarks.training.time_to_accuracy import PROBE, TASK, Race
from training import datasets


def whole(
    task: str, method: str, seed: int, accuracy: float, seconds: float = 1.0, note: str = ""
) -> list[Measurement]:
    return [
        Measurement(task, method, seed, "accuracy", accuracy, "share", note=note),
        Measurement(task, method, seed, "tested", 100, "images"),
        Measurement(task, method, seed, "processor_seconds", seconds, "s"),
        Measurement(task, method, seed, "seconds", seconds, "s"),
    ]


def epochs(method: str, *points: tuple[float, float]) -> list[Measurement]:
    """(seconds since the start, accuracy) of each epoch, and the whole."""
    rows = []
    for epoch, (seconds, accuracy) in enumerate(points, start=1):
        rows.append(Measurement(TASK, method, 0, "accuracy", accuracy, "share", epoch))
        rows.append(Measurement(TASK, method, 0, "since_start", seconds, "s", epoch))
    return rows + whole(TASK, method, 0, max(accuracy for _, accuracy in points), points[-1][0])


def sheet_of(*rows: Measurement) -> Sheet:
    sheet = Sheet(None, {})
    sheet.add(rows)
    return sheet


# --- arithmetic ------------------------------------------------------------------------------------------


def test_the_time_to_an_accuracy_is_that_of_the_first_epoch_that_has_it() -> None:
    rows = [*whole(TASK, PROBE, 0, 0.95, 10.0), *epochs("tutorial", (50, 0.8), (100, 0.95), (150, 0.93))]
    (compared,) = time_to_accuracy.compare(rows)
    assert (compared.reached, compared.ratio) == (100, pytest.approx(10.0))
    assert compared.reached_low == 100, "0.8 is below the lower end of 95 of 100"


def test_an_accuracy_that_was_read_back_from_the_file_is_the_same_accuracy() -> None:
    rows = epochs("tutorial", (50, 0.9), (100, round(146 / 153, 6)))
    assert time_to_accuracy.first_reached(rows, "tutorial", 0, 146 / 153) == 100


def test_a_peer_that_never_gets_there_gives_a_lower_bound() -> None:
    rows = [*whole(TASK, PROBE, 0, 0.95, 10.0), *epochs("tutorial", (50, 0.85), (200, 0.92))]
    (compared,) = time_to_accuracy.compare(rows)
    assert (compared.reached, compared.reached_low, compared.ratio) == (None, 200, pytest.approx(20.0))
    said = "\n".join(time_to_accuracy.text(sheet_of(*rows)))
    assert "> 20.0x, never reached in 1 of 1" in said


def test_auto_is_judged_by_the_mean_over_the_seeds_against_the_best_rung() -> None:
    rows = []
    for seed, (auto, probe, full) in enumerate([(0.90, 0.90, 0.92), (0.94, 0.90, 0.93), (0.92, 0.90, 0.94)]):
        rows += [
            *whole("one", "auto", seed, auto, note="full" if seed else "linear_probe"),
            *whole("one", "linear_probe", seed, probe),
            *whole("one", "full", seed, full),
        ]
    (judged,) = ladder.judge(rows)
    assert (judged.best, judged.seeds, judged.kept) == ("full", 3, {"linear_probe": 1, "full": 2})
    assert judged.behind == pytest.approx(0.01)
    assert judged.met


def test_a_seed_that_a_rung_has_not_run_yet_counts_for_none() -> None:
    rows = [
        *whole("one", "auto", 0, 0.9), *whole("one", "full", 0, 0.9),
        *whole("one", "auto", 1, 0.1),
    ]  # fmt: skip
    (judged,) = ladder.judge(rows)
    assert (judged.seeds, judged.auto) == (1, 0.9)


def test_an_interrupted_run_goes_on_after_its_last_complete_unit(tmp_path: Path) -> None:
    path = tmp_path / "results" / "few.csv"
    sheet = Sheet(path, {"hardware": "two cores: fast"})
    sheet.add(whole("steel-10", "auto", 0, 0.96, note="linear_probe"))
    sheet.add(whole("steel-10", "auto", 1, 0.97)[:2])
    with path.open("a") as file:
        file.write("steel-10,auto,1,acc")
    with pytest.raises(SystemExit, match="'two cores: fast' there, 'four' now"):
        Sheet(path, {"hardware": "four"}, resume=True)
    resumed = Sheet(path, {"hardware": "two cores: fast"}, resume=True)
    assert (resumed.has("steel-10", "auto", 0), resumed.has("steel-10", "auto", 1)) == (True, False)
    assert results.read(path) == (
        whole("steel-10", "auto", 0, 0.96, note="linear_probe"),
        {"hardware": "two cores: fast"},
    )


def test_accuracy_may_be_measured_on_several_machines_and_the_file_names_them(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    Sheet(path, {"hardware": "two cores", "python": "3.11"}).add(whole("steel-10", "auto", 0, 0.96))
    for _ in range(2):
        resumed = Sheet(path, {"hardware": "four", "python": "3.11"}, resume=True, elsewhere=True)
        assert resumed.has("steel-10", "auto", 0)
        assert results.read(path)[1] == {"hardware": "two cores; four", "python": "3.11"}
    with pytest.raises(SystemExit, match=r"was measured otherwise \(python: '3.11' there, '3.12' now\)"):
        Sheet(path, {"hardware": "six", "python": "3.12"}, resume=True, elsewhere=True)


def test_the_picture_shows_every_contender_and_is_the_same_each_time(tmp_path: Path) -> None:
    race = [*whole(TASK, PROBE, 0, 0.95, 10.0), *epochs("tutorial", (50, 0.8)), *epochs("fastai-4", (60, 0.9))]
    climb = [row for rung in ("auto", "linear_probe", "full") for row in whole("steel-10", rung, 0, 0.9)]
    for name in ("one.svg", "two.svg"):
        plot.draw({"time": race, "ladder": climb}, {"hardware": "two cores"}, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text("utf-8")
    assert drawn == (tmp_path / "two.svg").read_text("utf-8")
    assert all(text in drawn for text in ("PyTorch tutorial", "fine_tune(4)", "Perennial", "steel-10", "two cores"))


# --- the tasks that are made -----------------------------------------------------------------------------


def test_a_seed_makes_the_same_images(tmp_path: Path) -> None:
    for make in (tasks.permuted_gratings, tasks.colour_patches):
        one = make(tmp_path / f"{make.__name__}-1", images=6, side=64, seed=3)
        two = make(tmp_path / f"{make.__name__}-2", images=6, side=64, seed=3)
        files = [path.relative_to(one) for path in sorted(one.rglob("*.png"))]
        assert len(files) == 6
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_permuted_gratings_are_gratings_with_their_pixels_in_other_places(tmp_path: Path) -> None:
    folder = tasks.permuted_gratings(tmp_path, images=2, side=64)
    places = np.random.default_rng(5).permutation(64 * 64)
    for label, axis in (("upright", 0), ("level", 1)):
        (path,) = (folder / label).iterdir()
        with Image.open(path) as image:
            seen = np.asarray(image.convert("L"), float).ravel()
        grating = np.empty(64 * 64)
        grating[places] = seen
        along = grating.reshape(64, 64).mean(axis=axis)
        assert along.std() > 3 * grating.reshape(64, 64).mean(axis=1 - axis).std()
        assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.1, "neighbours tell nothing of each other"


def test_every_planted_copy_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    folder, planted = tasks.planted_duplicates(tmp_path, train=30, held_out=15, planted=8, side=128)
    images = datasets.load(str(folder), validation=0.15, test=0.15, seed=0)
    left_out = {skip.location for skip in images.skipped if "near-duplicate" in skip.reason}
    assert left_out == tasks.names(planted)
    assert any(finding.kind == "near_duplicates_left_out" for finding in images.findings)


# --- real images -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_photos(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draws.copy_ants_and_bees(test_data, tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture
def recipe(test_data: Path) -> Recipe:
    return Recipe(test_data / draws.WEIGHTS, budget=5.0, most=8)


def test_a_draw_trains_on_so_many_a_class_and_tests_on_all_others(test_data: Path, tmp_path: Path) -> None:
    made = draws.DRAWS["steel-10"].make(test_data, tmp_path, 1, None)
    rows = [line.split(",") for line in made.read_text("utf-8").splitlines()[1:]]
    train = {(image, label) for image, label, split in rows if split == "train"}
    assert (len(train), len(rows)) == (60, 1800)
    other = draws.DRAWS["steel-10"].make(test_data, tmp_path, 2, None).read_text("utf-8")
    assert made.read_text("utf-8") != other


def test_the_mixture_is_1000_photos_and_300_sketches(test_data: Path, tmp_path: Path) -> None:
    made = draws.DRAWS["photos+sketches"].make(test_data, tmp_path, 0, None)
    train = [line for line in made.read_text("utf-8").splitlines() if line.endswith(",train")]
    assert (sum("/photo/" in line for line in train), sum("/sketch/" in line for line in train)) == (1000, 300)


def test_domains_are_scored_apart_by_the_finished_graph(recipe: Recipe, test_data: Path, tmp_path: Path) -> None:
    sheet = Sheet(None, {})
    few_images.measure(
        sheet, test_data, replace(recipe, most=4), tmp_path, tasks=["photos+sketches"], methods=["linear_probe"],
        seeds=1, say=str,
    )  # fmt: skip
    found = {row.metric: row.value for row in sheet.rows}
    assert found["tested"] == found["tested_photo"] + found["tested_sketch"]
    right = sum(found[f"accuracy_{name}"] * found[f"tested_{name}"] for name in ("photo", "sketch"))
    assert right == pytest.approx(found["accuracy"] * found["tested"])
    assert "photos+sketches sketch" in "\n".join(few_images.text(sheet))


def test_what_auto_kept_need_not_be_trained_again(recipe: Recipe, test_data: Path, tmp_path: Path) -> None:
    sheet = sheet_of(*whole("hymenoptera-20", "auto", 0, 0.9, note="linear_probe"))
    ladder.measure(
        sheet, test_data, recipe, tmp_path, tasks=["hymenoptera-20"], methods=["auto", "linear_probe", "partial"],
        seeds=1, reuse=True, known=whole("hymenoptera-20", "partial", 0, 0.8), say=str,
    )  # fmt: skip
    assert results.values(sheet.rows, "hymenoptera-20", "linear_probe") == [0.9]
    assert results.values(sheet.rows, "hymenoptera-20", "partial") == [0.8]
    assert not any(tmp_path.iterdir()), "nothing was trained"


def test_perennial_and_the_tutorial_race_on_the_same_photos(
    recipe: Recipe, few_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    race = Race(few_photos, recipe.weights.resolve(), tmp_path, sys.executable, epochs=1, warm=False)
    sheet = Sheet(tmp_path / "time.csv", {})
    time_to_accuracy.measure(sheet, race, [PROBE, "tutorial"], 1, print)
    whole_rows = {(row.method, row.metric): row.value for row in sheet.rows if not row.epoch}
    assert whole_rows[PROBE, "tested"] == whole_rows["tutorial", "tested"] == 16
    assert whole_rows[PROBE, "fit_seconds"] < whole_rows[PROBE, "seconds"]
    (since_start,) = (row.value for row in sheet.rows if row.metric == "since_start")
    assert since_start < whole_rows["tutorial", "seconds"]
    assert len(time_to_accuracy.compare(results.read(tmp_path / "time.csv")[0])) == 1


def test_without_fastai_its_part_is_left_out_and_says_so(
    recipe: Recipe, few_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_accuracy, "installed", lambda python, package: False)
    sheet, said = Sheet(None, {}), list[str]()
    time_to_accuracy.measure(
        sheet, Race(few_photos, recipe.weights, tmp_path, sys.executable, warm=False), ["fastai"], 1, said.append
    )
    assert [(row.method, row.metric) for row in sheet.rows] == [("fastai-4", "left_out")]
    assert "perennial[bench-training]" in said[0]
    assert "left out: fastai-4" in "\n".join(time_to_accuracy.text(sheet))


@pytest.mark.skipif(
    find_spec("fastai") is None, reason="fastai is not installed: pip install 'perennial[bench-training]'"
)
def test_fastai_notes_each_epoch(recipe: Recipe, few_photos: Path, tmp_path: Path) -> None:
    race = Race(few_photos, recipe.weights.resolve(), tmp_path, sys.executable, fastai_epochs=(1,), warm=False)
    sheet = Sheet(None, {})
    time_to_accuracy.measure(sheet, race, ["fastai"], 1, str)
    assert sorted({row.epoch for row in sheet.rows}) == [0, 1, 2]


def test_a_verdict_row_says_what_was_asked_and_what_came(recipe: Recipe) -> None:
    rows = [
        Measurement(verdicts.NEGATIVE, "auto", 0, "says", 0, "line", note="Transfer is NEGATIVE here."),
        Measurement(verdicts.NEGATIVE, "auto", 0, "as_asked", 1, "share", note="transfer: negative"),
    ]
    said = "\n".join(verdicts.text(sheet_of(*rows)))
    assert "met    seed 0: transfer: negative" in said
    assert "Transfer is NEGATIVE here." in said


def test_the_command_teaches_and_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    taught = capsys.readouterr().out
    assert all(part in taught for part in ("time", "few", "ladder", "verdicts", "--resume", "--peer-python"))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--only", "nothing"])
    assert "'nothing' is none of time, few, ladder, verdicts" in capsys.readouterr().err


@pytest.mark.parametrize("peer", ["peer_tutorial", "peer_fastai"])
def test_a_peer_imports_nothing_of_perennial(peer: str) -> None:
    tree = ast.parse(Path(draws.__file__).with_name(f"{peer}.py").read_text("utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not {"perennial", "training", "benchmarks"} & {module.split(".")[0] for module in modules}
