"""Images to label as files that people and tools fill in: CSV for a spreadsheet, JSON for Label Studio; and back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from perennial.errors import InvalidDataset
from perennial.ledger.labels import Feedback

Format = Literal["csv", "label-studio"]
#: Why an image is asked about: it tells much, or it was drawn from all of them.
Chosen = Literal["informative", "random"]

_ID, _LABEL, _IMAGE = "prediction_id", "label", "image"
#: The names that `labelling_config` gives its two controls, which a task's pre-annotation refers to.
_CHOICE, _SHOWN = "label", "image"
_COLUMNS: Final = (_ID, _IMAGE, "predicted", "confidence", "drift", "doubt", "chosen", _LABEL)
_MOST_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Question:
    """An image to be labelled, with what the model said of it, and how it was `chosen`: `drift` and `doubt` are in
    0..1."""

    prediction_id: str
    image: str
    predicted: str
    confidence: float
    drift: float
    doubt: float
    chosen: Chosen


def as_csv(questions: Sequence[Question]) -> str:
    """A row a question, with an empty column `label` to fill in."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for each in questions:
        numbers = (f"{value:.4f}" for value in (each.confidence, each.drift, each.doubt))
        writer.writerow([each.prediction_id, each.image, each.predicted, *numbers, each.chosen, ""])
    return text.getvalue()


def as_label_studio(questions: Sequence[Question], model_version: str) -> str:
    """Label Studio's tasks, each with the model's answer as a prediction."""
    tasks = [
        {
            "data": {
                _IMAGE: each.image, _ID: each.prediction_id, "drift": round(each.drift, 4),
                "doubt": round(each.doubt, 4), "chosen": each.chosen,
            },
            "predictions": [
                {
                    "model_version": model_version,
                    "score": round(each.confidence, 4),
                    "result": [
                        {
                            "from_name": _CHOICE, "to_name": _SHOWN, "type": "choices",
                            "value": {"choices": [each.predicted]},
                        }
                    ],
                }
            ],
        }
        for each in questions
    ]  # fmt: skip
    return json.dumps(tasks, indent=2, ensure_ascii=False) + "\n"


def read(path: Path, source: str | None = None) -> list[Feedback]:
    """The labels in a file: a CSV with the columns `prediction_id` and `label`, or what Label Studio exports (JSON or
    JSON-MIN). What has not been labelled is passed over; of several annotations the last one counts.

    Raises:
        InvalidDataset: says what is wrong, and where.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidDataset(f"{path} is larger than {_MOST_BYTES // 2**20} MB; split it")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path} is not UTF-8 text; save it as such") from error
    found = _of_json(path, text) if text.lstrip()[:1] in ("[", "{") else _of_csv(path, text)
    return [Feedback(prediction, label, source) for prediction, label in found]


def _of_csv(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = {_ID, _LABEL} - set(reader.fieldnames or ())
        if missing:
            raise InvalidDataset(f"{path} has no column {' and no column '.join(sorted(missing))}")
        rows = [(row[_ID], row[_LABEL]) for row in reader]
    except csv.Error as error:
        raise InvalidDataset(f"{path} is not a CSV file: {error}") from error
    found = []
    for number, (prediction, label) in enumerate(rows, start=2):
        if not (label or "").strip():
            continue
        if not (prediction or "").strip():
            raise InvalidDataset(f"{path}, line {number}: there is a label and no {_ID}")
        found.append((prediction.strip(), label.strip()))
    return found


def _of_json(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDataset(f"{path} is not JSON: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InvalidDataset(f"{path} is not a list of tasks as Label Studio exports them")
    found = []
    for number, task in enumerate(tasks):
        data = task.get("data")
        prediction = (data if isinstance(data, dict) else task).get(_ID)
        label = _annotated(task) if isinstance(data, dict) else task.get(_CHOICE)
        if label is None:
            continue
        if not isinstance(prediction, str) or not isinstance(label, str):
            raise InvalidDataset(
                f"{path}, task {number}: {_ID!r} is missing or the label is not one text; export the tasks that "
                "`perennial labels export` wrote, with one choice an image"
            )
        found.append((prediction, label))
    return found


def _annotated(task: Mapping[str, Any]) -> Any:
    """The choice of the last annotation that was not cancelled; None where there is none."""
    label = None
    annotations = task.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else ():
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result")
        for result in results if isinstance(results, list) else ():
            value = result.get("value") if isinstance(result, dict) else None
            choices = value.get("choices") if isinstance(value, dict) else None
            if isinstance(choices, list) and choices:
                label = choices[0] if len(choices) == 1 else choices
    return label
