"""Scaled decoding, the exported graph and a certified precision change next to no label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from commands.demo_traffic import served
from tests.end_to_end.test_real_images import Client
from tests.end_to_end.torchvision_reference import labels_by_torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Small enough that photos of 500 x 375 are decoded at half their size.
SIDE = 160


def test_the_served_label_is_that_of_torchvision_on_a_full_decode(
    perennial: Callable[..., Any],
    home: Path,
    test_data: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERENNIAL_SERVE__PORT", str(free_port))
    weights = test_data / "weights" / "mobilenet_v2_imagenet.pth"
    photos = sorted((test_data / "hymenoptera").glob("*/*/*.jpg"))
    trained = perennial(
        "train", test_data / "hymenoptera", "--backbone", "mobilenet_v2", "--weights", weights,
        "--strategy", "linear_probe", "--image-size", SIDE, "--json",
    ).json()  # fmt: skip
    home.mkdir(exist_ok=True)
    with served(free_port, home / "server.log", keep=False) as server, Client(server.url) as client:
        answers = [answer["label"] for answer in client.send(photos)]
    expected = labels_by_torch(Path(trained["bundle"]), weights, photos)
    truth = [path.parent.name for path in photos]
    agreement = sum(map(str.__eq__, answers, expected)) / len(photos)
    served_accuracy = sum(map(str.__eq__, answers, truth)) / len(photos)
    torch_accuracy = sum(map(str.__eq__, expected, truth)) / len(photos)
    with capsys.disabled():
        print(f"\n  {len(photos)} photos: agreement {agreement:.4f}, accuracy {served_accuracy:.4f}, "
              f"by torch {torch_accuracy:.4f}")  # fmt: skip
    assert client.failures == []
    assert agreement >= 0.99
    assert abs(served_accuracy - torch_accuracy) <= 0.005
