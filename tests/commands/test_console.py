from __future__ import annotations

import pytest

from commands import console
from commands.console import Pace
from perennial.progress import IMAGES, Step


def test_a_pace_is_measured_from_the_first_step_so_resumed_work_does_not_look_fast() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.rate(Step("training", 500, 1000, IMAGES)) == 0.0
    now[0] += 2.0
    assert pace.rate(Step("training", 700, 1000, IMAGES)) == 100.0
    now[0] += 10.0
    assert pace.rate(Step("training", 32, 1000, IMAGES)) == 0.0  # the next fold
    now[0] += 1.0
    assert pace.rate(Step("training", 82, 1000, IMAGES)) == 50.0
    now[0] += 10.0
    assert pace.rate(Step("training", 32, 1000, IMAGES)) == 0.0  # and one more, which begins where the other did
    assert pace.rate(Step("loading the weights", 1, 1)) == 0.0


def test_plain_lines_say_images_a_second_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress() as progress:
        for done in (0, 300, 600, 900):
            progress(Step("embedding images", done, 900, IMAGES))
            now[0] += 3.0
        progress(Step("exporting the graph", 1, 1))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "embedding images: 0/900",
        "embedding images: 300/900 (100 images/s, 0:00:06 left)",
        "embedding images: 600/900 (100 images/s, 0:00:03 left)",
        "embedding images: 900/900 (100 images/s)",
        "exporting the graph: 1/1",
    ]
