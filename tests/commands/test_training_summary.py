from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from commands.training_summary import print_summary
from perennial.bundle import (
    ClassMetrics,
    Dataset,
    Estimate,
    Finding,
    Ladder,
    Manifest,
    Pretrained,
    Rung,
    Transfer,
)
from perennial.images import InputRule

HIGH = Estimate(value=0.95, low=0.92, high=0.98)
LOW = Estimate(value=0.6, low=0.55, high=0.65)


def manifest(**changes: object) -> Manifest:
    def metrics(f1: Estimate) -> ClassMetrics:
        return ClassMetrics(precision=f1, recall=f1, f1=f1, support=50)

    plain = Manifest(
        name="insects",
        version="20261121-120000-00001",
        created_at=datetime(2026, 11, 21, tzinfo=UTC),
        classes=("ant", "bee", "cow", "[red]dog"),
        input=InputRule(256, 224),
        backbone="mobilenet_v2",
        pretrained=Pretrained(source="default", sha256=""),
        strategy="linear_probe",
        why="the cheapest rung that is not measurably worse",
        dataset=Dataset(location="/data", fingerprint="f", train=1200, validation=200, test=200),
        metrics={"accuracy": HIGH},
        per_class={"ant": metrics(HIGH), "bee": metrics(HIGH), "cow": metrics(HIGH), "[red]dog": metrics(LOW)},
        temperature=1.0,
        properties=(),
        precisions=("float32",),
        seed=0,
        packages={},
    )
    return plain.model_copy(update=changes)


def printed(of: Manifest, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True)
    print_summary(console, of, seconds=41.3, report=Path("/models/1/report.html"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


LADDER = Ladder(
    chosen="linear_probe",
    selection="200 validation images",
    budget=90,
    rungs=(
        Rung(name="majority", tried=True, accuracy=LOW),
        Rung(name="linear_probe", tried=True, accuracy=HIGH, seconds=4.2, parameters=2_226_434, milliseconds=5.31),
        Rung(name="full", tried=False, why="past the budget", seconds=200),
    ),
    transfer=Transfer(verdict="positive", simple_suffices=False, says=("It was 35 points ahead.",)),
)


def test_it_says_how_good_the_model_is_what_was_tried_and_where_the_report_is() -> None:
    text = printed(manifest(ladder=LADDER))
    assert "Beats the baselines. Linear probe on mobilenet_v2: right on 95.0 % of 200 test images" in text
    for words in (
        "> Linear probe", "95.0 ± 3.0", "4.2 s", "5.31", "2.23 M", "not tried", "~ 3 min 20 s",
        "Full fine-tuning was not tried: past the budget", "Transfer: positive", "It was 35 points ahead.",
        "1,200 train, 200 validation, 200 test", "41 s", "/models/1/report.html",
    ):  # fmt: skip
        assert words in text, words


def test_the_three_weakest_classes_come_first_and_names_are_not_markup() -> None:
    lines = [line.split()[0] for line in printed(manifest()).splitlines() if line.rstrip().endswith("50")]
    assert lines == ["[red]dog", "ant", "bee"]


def test_findings_are_named_before_the_ladder() -> None:
    finding = Finding(kind="duplicates_across_splits", message="3 are copies.", locations=tuple("abcde"))
    text = printed(manifest(ladder=LADDER, findings=(finding,)))
    assert "With care." in text
    assert text.index("duplicates across splits: 3 are copies.") < text.index("The ladder")
    assert "and 2 more" in text


def test_without_a_ladder_it_says_which_strategy_and_why() -> None:
    assert "Linear probe: the cheapest rung that is not measurably worse" in printed(manifest())


def test_the_tables_fit_a_narrow_terminal() -> None:
    rows = [line for line in printed(manifest(ladder=LADDER)).splitlines() if "±" in line or "───" in line]
    assert rows
    assert all(len(line.rstrip()) <= 80 for line in rows)
