"""A bad model forced into a running service is undone by itself: feedback over HTTP, one look, the old answers again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from perennial.ledger import EventKind, watches
from tests.service.conftest import COLOURS, environment, make_world, picture, serving

TRUE = ("red", "green", "blue")


def test_a_bad_model_forced_in_answers_no_longer_than_its_labels_take(tmp_path: Path) -> None:
    world = make_world(tmp_path / "home")
    good = world.publish_live()
    bad = world.publish((*COLOURS[1:], COLOURS[0]))  # every answer is another class

    def perennial(*arguments: str, code: int) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "commands.main", *arguments],
            cwd=tmp_path, env=environment(world), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout

    with serving(world) as server:
        perennial("models", "promote", bad, "--force", "--reason", "it felt better", code=0)
        assert server.serves(bad)
        for number in range(24):
            colour = TRUE[number % 3]
            answer = server.predict(picture(colour, seed=number))
            assert answer["label"] != colour
            labelled = {"prediction_id": answer["prediction_id"], "label": colour}
            assert server.http.post("/v1/feedback", json=labelled).json()["accepted"] == 1
        world.settle()

        look = json.loads(perennial("models", "rollback", "--if-worse", "--json", code=0))
        assert (look["outcome"], look["live"], look["numbers"]["rows"]) == ("rolled_back", good, 24)
        assert server.serves(good)
        assert server.predict(picture("red", seed=99))["label"] == "red"
        [undone] = world.events(EventKind.ROLLED_BACK)
        assert undone.detail["actor"] == watches.ACTOR
        assert server.http.get("/v1/events").json()["events"][-1]["kind"] == "rolled_back"
