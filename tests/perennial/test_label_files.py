"""Files of images to label: what is written can be read back, by us and by Label Studio, and mistakes are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from perennial import label_files
from perennial.errors import InvalidDataset
from perennial.label_files import Question
from perennial.ledger.labels import Feedback

QUESTIONS = [
    Question("p1", "s3://images/1.jpg", "dog", 0.61, 0.98, 0.7, "informative"),
    Question("p2", "s3://images/2.jpg", 'cat, "wild"', 0.5, 0.9, 0.99, "random"),
    Question("p3", "s3://images/3.jpg", "dog", 0.99, 0.7, 0.01, "informative"),
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_a_csv_is_filled_in_and_read_back(tmp_path: Path) -> None:
    rows = list(csv.DictReader(label_files.as_csv(QUESTIONS).splitlines()))
    assert [row["prediction_id"] for row in rows] == ["p1", "p2", "p3"]
    assert rows[1]["predicted"] == 'cat, "wild"'
    assert [row["chosen"] for row in rows] == ["informative", "random", "informative"]
    assert {row["label"] for row in rows} == {""}
    rows[0]["label"], rows[1]["label"] = " dog ", 'cat, "wild"'
    with (tmp_path / "filled.csv").open("w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets save it
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
    assert label_files.read(tmp_path / "filled.csv", "ann") == [
        Feedback("p1", "dog", "ann"),
        Feedback("p2", 'cat, "wild"', "ann"),
    ]


def test_a_csv_written_before_it_said_how_each_was_chosen_is_read(tmp_path: Path) -> None:
    before = "prediction_id,image,predicted,confidence,drift,doubt,label\np1,s3://images/1.jpg,dog,0.6,0.9,0.7,cat\n"
    assert label_files.read(write(tmp_path / "before.csv", before)) == [Feedback("p1", "cat")]


def annotated(task: dict[str, Any], *choices: list[str] | None) -> dict[str, Any]:
    """The task with annotations; None is one that was cancelled."""
    results = [
        {"was_cancelled": True, "result": []}
        if each is None
        else {"result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": each}}]}
        for each in choices
    ]
    return {**task, "id": 1, "annotations": results}


def test_tasks_for_label_studio_hold_the_models_answer_and_come_back_with_peoples(tmp_path: Path) -> None:
    tasks = json.loads(label_files.as_label_studio(QUESTIONS, "v1"))
    assert [task["data"]["image"] for task in tasks] == [each.image for each in QUESTIONS]
    assert [task["data"]["chosen"] for task in tasks] == ["informative", "random", "informative"]
    (guess,) = tasks[0]["predictions"]
    assert (guess["model_version"], guess["score"]) == ("v1", 0.61)
    assert guess["result"][0]["value"] == {"choices": ["dog"]}
    exported = [annotated(tasks[0], ["cat"], ["dog"], None), annotated(tasks[1], None), annotated(tasks[2])]
    path = write(tmp_path / "export.json", json.dumps(exported))
    assert label_files.read(path) == [Feedback("p1", "dog")]


def test_the_short_export_of_label_studio_is_read_too(tmp_path: Path) -> None:
    short = [{"image": "a", "prediction_id": "p1", "label": "dog"}, {"image": "b", "prediction_id": "p2"}]
    assert label_files.read(write(tmp_path / "min.json", json.dumps(short))) == [Feedback("p1", "dog")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,label\na,b\n", "no column prediction_id"),
        ("prediction_id,label\n,dog\n", "line 2"),
        ("", "no column"),
        ("[1, 2]", "not a list of tasks"),
        ('{"tasks": []}', "not a list of tasks"),
        ("[{", "is not JSON"),
        (json.dumps([annotated({"data": {"prediction_id": "p"}}, ["a", "b"])]), "task 0"),
        (json.dumps([annotated({"data": {}}, ["a"])]), "task 0"),
        (json.dumps([{"prediction_id": 3, "label": "dog"}]), "task 0"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_one_of_labels_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidDataset, match=says):
        label_files.read(write(tmp_path / "file", text))


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="cannot be read"):
        label_files.read(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidDataset, match="UTF-8"):
        label_files.read(tmp_path / "bytes.csv")
