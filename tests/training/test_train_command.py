from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from commands import console, train
from perennial import ledger
from perennial.bundle import open_bundle
from perennial.errors import InvalidDataset, InvalidSettings, PerennialError, WeightsUnavailable
from perennial.settings import load_settings

app = typer.Typer()
app.command()(train.train)

# BentoML 1.4 imports a name that pathspec has deprecated.


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `perennial train ...` on one thread; an error of ours is raised."""
    monkeypatch.setattr(console.invocation, "config", None)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_the_first_model_goes_live_and_the_second_is_only_registered(
    run: Callable[..., Result], tmp_path: Path, write_shapes: Callable[..., Path]
) -> None:
    folder = write_shapes(tmp_path / "data", classes=("disc", "stripes"), count=12)
    (folder / "disc" / "notes.txt").write_text("not an image")
    options = (str(folder), "--backbone", "squeezenet1_1", "--weights", "none", "--image-size", "40", "--seed", "3")
    options += ("--strategy", "linear_probe")
    first = run(*options, "--json")
    assert first.exit_code == 0
    document = json.loads(first.stdout)
    assert document["live"] is True
    assert (document["name"], document["strategy"]) == ("default", "linear_probe")
    assert document["counts"] == {"train": 16, "validation": 4, "test": 4}
    assert document["classes"] == ["disc", "stripes"]
    for metric in ("accuracy", "macro_f1"):
        assert set(document["metrics"][metric]) == {"value", "low", "high"}
    assert [Path(skip["location"]).name for skip in document["skipped"]] == ["notes.txt"]
    assert "notes.txt" in first.stderr
    assert "reading images: 25/25" in first.stderr

    second = run(*options, "--name", "default")
    assert "perennial models promote" in second.stdout
    assert second.stdout.rstrip().endswith("--name default")
    assert "Linear probe" in second.stdout

    engine = ledger.open_ledger(load_settings().ledger_url)
    models = ledger.models.all_of(engine, "default")
    assert len(models) == 2
    assert ledger.deployments.live(engine, "default").version == document["version"] == models[0].version
    digests = {model.manifest.files["weights.safetensors"].sha256 for model in models}
    assert len(digests) == 1, "the same seed gives the same weights"
    assert models[0].manifest.metrics == models[1].manifest.metrics
    assert models[0].manifest.seed == 3
    assert open_bundle(Path(document["bundle"])).manifest.version == document["version"]
    engine.dispose()


def test_the_log_holds_every_rung_and_epoch_and_the_summary_says_where(
    run: Callable[..., Result], shapes: Path
) -> None:
    options = (str(shapes), "--weights", "builtin", "--image-size", "48", "--strategy", "partial")
    ran = run(*options, "--precision", "32-true", "--log", "csv")
    (path,) = (load_settings().home_path / "logs" / "default").glob("*/metrics.csv")
    assert str(path.parent) in ran.stdout
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert any(row["linear_probe/rung_accuracy"] for row in rows)
    losses = [float(row["partial-fold-1/loss"]) for row in rows if row["partial-fold-1/loss"]]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    for number in ("accuracy", "learning_rate", "images_per_second"):
        assert any(row[f"partial-fold-1/{number}"] for row in rows)
    assert any(row["partial-final/loss"] for row in rows)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--backbone", "squeezenet1_1", "--weights", "gone.pth"), WeightsUnavailable),
        (("--backbone", "resnet18", "--weights", "builtin"), WeightsUnavailable),
        (("--strategy", "magic"), InvalidSettings),
        (("--precision", "8"), InvalidSettings),
        (("--name", "No Name"), InvalidSettings),
    ],
)
def test_what_fails_registers_nothing(
    options: tuple[str, ...], error: type[PerennialError], run: Callable[..., Result], shapes: Path
) -> None:
    with pytest.raises(error):
        run(str(shapes), *options)
    engine = ledger.open_ledger(load_settings().ledger_url)
    assert not ledger.models.all_of(engine, "default")
    engine.dispose()


def test_bad_data_has_exit_code_3(run: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset) as caught:
        run(str(tmp_path))
    assert caught.value.exit_code == 3


def test_without_the_training_packages_the_extra_is_named(
    run: Callable[..., Result], shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.find_spec
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(PerennialError, match=r"training needs torch: pip install 'perennial\[train\]'"):
        run(str(shapes))
