"""The loop on real photos: photos, then sketches of the same things arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from commands.demo_traffic import served
from tests.end_to_end.torchvision_reference import labels_by_torch

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 300


def shuffled(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*/*"))
    return [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]


class Client:
    """Sends images, several at a time, and remembers every failure."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60.0, trust_env=False)
        self.failures: list[str] = []

    def send(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        def one(path: Path) -> dict[str, Any]:
            response = self.http.post("/v1/predict", content=path.read_bytes())
            if response.status_code != 200:
                self.failures.append(f"{path.name}: {response.status_code} {response.text}")
                return {"label": None, "prediction_id": None}
            answer: dict[str, Any] = response.json()
            return answer

        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(one, paths))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def accuracy(self, paths: Sequence[Path]) -> float:
        answers = self.send(paths)
        return sum(answer["label"] == path.parent.name for answer, path in zip(answers, paths, strict=True)) / len(
            paths
        )


def _agreement(some: Sequence[str], others: Sequence[str]) -> float:
    return sum(map(str.__eq__, some, others)) / len(others)


@pytest.mark.timeout(900)
def test_photos_then_sketches(
    perennial: Callable[..., Any],
    perennial_at_hand: Callable[..., Any],
    home: Path,
    test_data: Path,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in {
        "PERENNIAL_NAME": "pacs",
        "PERENNIAL_SERVE__PORT": str(free_port),
        "PERENNIAL_SERVE__SWAP_INTERVAL": "0.25",
        "PERENNIAL_MONITOR__WINDOW": str(WINDOW),
        "PERENNIAL_MONITOR__MIN_ROWS": str(WINDOW),
        "PERENNIAL_MONITOR__REPORT": "never",  # the demo's are looked at; it is the verdicts that matter here
    }.items():
        monkeypatch.setenv(variable, value)
    photos, sketches = shuffled(test_data / "pacs" / "photo"), shuffled(test_data / "pacs" / "sketch")
    cut = int(0.7 * len(photos))
    for path in photos[:cut]:
        link = tmp_path / "photos" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    held_out = photos[cut:]
    figures: dict[str, Any] = {}

    weights = test_data / "weights" / "mobilenet_v2_imagenet.pth"
    trained = perennial(
        "train", tmp_path / "photos", "--backbone", "mobilenet_v2", "--weights", weights,
        "--strategy", "linear_probe", "--json",
    ).json()  # fmt: skip
    figures["training seconds"] = trained["seconds"]
    home.mkdir(exist_ok=True)
    with served(free_port, home / "server.log", keep=False) as server, Client(server.url) as client:
        answers = client.send(held_out[:WINDOW])
        truth = [path.parent.name for path in held_out[:WINDOW]]
        by_torch = labels_by_torch(Path(trained["bundle"]), weights, held_out[:WINDOW])
        figures["held-out photos"] = _agreement([answer["label"] for answer in answers], truth)
        figures["held-out photos, by torch"] = _agreement(by_torch, truth)
        figures["served labels that are torch's"] = _agreement([answer["label"] for answer in answers], by_torch)
        check = perennial_at_hand("monitor", "--json").json()
        figures["verdict on photos"] = check["verdict"]

        answers = client.send(sketches[:WINDOW])
        truth = [path.parent.name for path in sketches[:WINDOW]]
        figures["sketches, before"] = float(
            np.mean([answer["label"] == label for answer, label in zip(answers, truth, strict=True)])
        )
        check = perennial_at_hand("monitor", "--json").json()
        figures["verdict on sketches"] = check["verdict"]
        labels = [
            {"prediction_id": answer["prediction_id"], "label": label}
            for answer, label in zip(answers, truth, strict=True)
        ]
        accepted = client.http.post("/v1/feedback", json=labels).json()
        assert accepted == {"accepted": WINDOW, "kept": 0, "unknown_predictions": [], "unknown_labels": []}
        check = perennial_at_hand("monitor", "--json", "--exit-code", code=10).json()
        figures["accuracy by labels"] = check["accuracy"]["labels"]["value"]

        # From here on nobody watches: the watcher checks, retrains in a process of its own, and the gate decides.
        perennial("watch", "--once")
        events = client.http.get("/v1/events").json()["events"]
        (passed,) = [event for event in events if event["kind"] == "gate_passed"]
        figures["gate"] = passed["detail"]["why"]
        retrained = passed["detail"]["version"]
        versions = [model["version"] for model in perennial_at_hand("models", "list", "--json").json() if model["live"]]
        assert versions == [retrained]
        for _ in range(200):
            if client.http.get("/v1/model").json()["version"] == retrained:
                break
            time.sleep(0.05)
        figures["other sketches, after"] = client.accuracy(sketches[WINDOW : 2 * WINDOW])
        figures["held-out photos, after"] = client.accuracy(held_out)
        served_by = client.http.get("/v1/model").json()["version"]

    with capsys.disabled():
        print("\n" + "\n".join(f"  {name}: {value}" for name, value in figures.items()))
    assert client.failures == []
    assert served_by == retrained
    assert retrained != trained["version"]
    assert figures["verdict on photos"] == "ok"
    assert figures["held-out photos"] >= 0.97
    assert figures["served labels that are torch's"] >= 0.99
    assert abs(figures["held-out photos"] - figures["held-out photos, by torch"]) <= 0.005
    assert figures["verdict on sketches"] == "data_drift"
    assert figures["sketches, before"] < 0.40
    assert figures["other sketches, after"] >= 0.60
    assert figures["held-out photos, after"] >= 0.95
