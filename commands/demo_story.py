"""The demo's steps: each must happen, and no request may fail."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from commands import console
from commands.demo_traffic import Answer, Server, Traffic, served
from commands.demo_world import Change, Digit, dark_and_soft_lens, digits, swapped, turned_camera, write_folder
from perennial.errors import PerennialError
from perennial.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from monitoring.check import Check

TRAINING: Final = 800
WINDOW: Final = 300
SEED: Final = 0
PAIR: Final = ("3", "8")
_BACKGROUND_PAUSE: Final = 0.05
_LEDGER_SECONDS: Final = 10.0
_PLAIN_WIDTH: Final = 140


class DemoFailed(PerennialError):
    title = "A step of the demo did not happen"


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline. `accuracy` is the true one, known because the demo knows every digit."""

    seconds: float
    traffic: str
    accuracy: float | None
    verdict: str
    version: str
    event: str


@dataclass
class Story:
    """What the steps share: the world, the server, and the timeline as it grows."""

    settings: Settings
    engine: sa.Engine
    server: Server
    traffic: Traffic
    folder: Path
    train: list[Digit]
    pools: list[list[Digit]]
    quiet: bool
    begun: float
    timeline: list[Moment] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def short(self, version: str) -> str:
        """v1, v2, ... in the order in which the models appeared."""
        return self.names.setdefault(version, f"v{len(self.names) + 1}")

    def tell(
        self, traffic: str, event: str, *, accuracy: float | None = None, verdict: str = "", version: str | None = None
    ) -> None:
        moment = Moment(
            time.monotonic() - self.begun, traffic, accuracy, verdict, self.short(version or self.live()), event
        )
        self.timeline.append(moment)
        if not self.quiet:
            share = "" if accuracy is None else f"accuracy {accuracy:.3f}  "
            console.err.print(f"{moment.seconds:6.1f} s  {traffic:<18} {share}{verdict}  {event}", markup=False)

    def live(self) -> str:
        from perennial.ledger import deployments

        return deployments.live(self.engine, self.settings.name).version

    def check(self) -> Check:
        from monitoring.check import run_check

        return run_check(self.engine, self.settings)

    def send(self, pool: int, change: Change | None) -> tuple[list[Answer], float]:
        """Send a pool's images; returns when all the answers are in the ledger, as a check would find them."""
        from perennial.ledger import predictions

        answers = self.traffic.send(self.pools[pool], change)
        ids = [answer.prediction_id for answer in answers]
        deadline = time.monotonic() + _LEDGER_SECONDS
        while len(predictions.known(self.engine, ids)) < len(ids):
            _require(time.monotonic() < deadline, "answered predictions did not come into the ledger")
            time.sleep(0.02)
        return answers, _accuracy(answers)


def run(*, port: int, keep: bool, quiet: bool) -> None:
    """Play the story; `quiet` prints one JSON document instead of lines and a table.

    Raises:
        DemoFailed: a step did not happen, or a request failed.
    """
    settings = _fresh_home(port or _free_port())
    begun = time.monotonic()
    with ExitStack() as stack:
        story = _begin(settings, stack, quiet=quiet, keep=keep, begun=begun)
        try:
            _healthy_traffic(story)
            _a_lens_goes_dark_and_soft(story)
            _the_camera_is_turned(story)
            _two_classes_swap_meaning(story)
            _a_bad_model_is_refused(story)
            _a_rollback(story)
            _require(not story.traffic.tally.failures, f"requests failed: {story.traffic.tally.failures[:3]}")
        finally:
            if not quiet:
                width = None if console.out.is_terminal else _PLAIN_WIDTH
                Console(width=width, highlight=False).print(timeline_table(story.timeline))
        _finish(story, json=quiet, keep=keep)


def _fresh_home(port: int) -> Settings:
    """Settings of the demo's own, in a folder of its own, for this process and the server's."""
    folder = console.settings_for().home_path / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "perennial.toml"
    config.write_text("# The demo's own, so that no settings of this folder's apply.\n", "utf-8")
    for variable in [name for name in os.environ if name.startswith("PERENNIAL_")]:
        del os.environ[variable]
    os.environ |= {
        "PERENNIAL_CONFIG": str(config),
        "PERENNIAL_NAME": "digits",
        "PERENNIAL_HOME": str(folder),
        "PERENNIAL_TRAIN__WEIGHTS": "builtin",
        "PERENNIAL_TRAIN__STRATEGY": "linear_probe",  # the story is about the loop, not training
        "PERENNIAL_SERVE__PORT": str(port),
        "PERENNIAL_SERVE__SWAP_INTERVAL": "0.25",
        "PERENNIAL_MONITOR__WINDOW": str(WINDOW),
        "PERENNIAL_MONITOR__MIN_ROWS": str(WINDOW),
        "PERENNIAL_MONITOR__MIN_LABELS": "100",
        "PERENNIAL_MONITOR__OPEN_AFTER": "1",  # the story has no time for windows to agree
        "PERENNIAL_MONITOR__CLOSE_AFTER": "1",
        "PERENNIAL_RETRAIN__COOLDOWN": "0",
        "BENTOML_HOME": str(folder / "bentoml"),
    }
    console.invocation.config = None
    return console.settings_for()


def _begin(settings: Settings, stack: ExitStack, *, quiet: bool, keep: bool, begun: float) -> Story:
    """Train on a folder of digits, deploy, and start the server."""
    from perennial.ledger import open_ledger
    from training.train import train as train_on

    world = digits(SEED)
    pools = [world[TRAINING + start : TRAINING + start + WINDOW] for start in range(0, 3 * WINDOW, WINDOW)]
    train = world[:TRAINING]
    folder = write_folder(settings.home_path / "photos", train)
    engine = open_ledger(settings.ledger_url)
    stack.callback(engine.dispose)
    if not quiet:
        console.err.print(f"training on {TRAINING} handwritten digits, then starting a server ...", markup=False)
    bundle = train_on(engine, settings, str(folder)).fitted.bundle
    log = settings.home_path / "server.log"
    server = stack.enter_context(served(settings.serve.port, log, keep=keep))
    traffic = Traffic(server.url)
    stack.callback(traffic.close)
    story = Story(settings, engine, server, traffic, settings.home_path, train, pools, quiet, begun)
    accuracy = bundle.manifest.metrics["accuracy"]
    story.tell(
        "none yet",
        f"trained on {TRAINING} digits, {bundle.manifest.strategy} on the built-in checkpoint "
        f"({accuracy.low:.3f} to {accuracy.high:.3f}); served at {server.url}",
        accuracy=accuracy.value,
    )
    return story


def _healthy_traffic(story: Story) -> None:
    _, accuracy = story.send(0, None)
    check = story.check()
    story.tell("healthy", "all is well", accuracy=accuracy, verdict=check.verdict)
    _require(check.verdict == "ok", f"healthy traffic was called {check.verdict}")


def _a_lens_goes_dark_and_soft(story: Story) -> None:
    _, accuracy = story.send(1, dark_and_soft_lens)
    check = story.check()
    story.tell("dark, soft lens", f"named; {check.retrain.why}", accuracy=accuracy, verdict=check.verdict)
    _require(check.verdict == "sensor_shift", f"the dark and soft lens was called {check.verdict}")
    _require(not check.retrain.due, "a sensor shift alone must not retrain")


def _the_camera_is_turned(story: Story) -> None:
    """A severe change: seen at once, proven by labels, mended by a retrain while requests go on."""
    before = story.live()
    answers, accuracy = story.send(2, turned_camera)
    check = story.check()
    story.tell("camera turned", f"named; {check.retrain.why}", accuracy=accuracy, verdict=check.verdict)
    _require(check.verdict == "data_drift", f"the turned camera was called {check.verdict}")
    _require(accuracy < 0.6, f"the turned camera cost too little accuracy to show anything: {accuracy:.3f}")
    accepted = story.traffic.label(answers, _true_meaning)
    _require(accepted == len(answers), f"only {accepted} of {len(answers)} labels were accepted")
    check = story.check()
    story.tell("camera turned", f"{accepted} labels came back; {check.retrain.why}", verdict=check.verdict)
    _require(check.retrain.due, f"labels came back and no retrain was called for: {check.retrain.why}")
    result, seen = _retrain_under_traffic(story, story.pools[2], turned_camera)
    _require(result.outcome == "promoted", f"the retrain was not promoted: {result.why}")
    answered = {answer.version for answer in seen if answer.version}
    _require(answered == {before, result.version}, f"background requests were answered by {sorted(answered)}")
    _, accuracy = story.send(0, turned_camera)  # digits that no model has seen turned
    check = story.check()
    story.tell("camera turned", "the new model knows it", accuracy=accuracy, verdict=check.verdict)
    _require(accuracy > 0.85, f"after the retrain accuracy is only {accuracy:.3f}")
    _require(check.verdict == "ok", f"traffic that the new model knows was called {check.verdict}")


def _two_classes_swap_meaning(story: Story) -> None:
    answers, _ = story.send(1, turned_camera)
    story.traffic.label(answers, _swapped_meaning)
    check = story.check()
    accuracy = _accuracy(answers, _swapped_meaning)
    story.tell(
        "camera turned", f"{PAIR[0]} and {PAIR[1]} swap meaning; {check.retrain.why}", accuracy=accuracy,
        verdict=check.verdict,
    )  # fmt: skip
    _require(check.verdict == "concept_drift", f"swapped meanings were called {check.verdict}")
    _require(check.retrain.due, f"concept drift called for no retrain: {check.retrain.why}")
    result, _ = _retrain_under_traffic(story, story.pools[1], turned_camera)
    _require(result.outcome == "promoted", f"the retrain after concept drift was not promoted: {result.why}")
    answers, _ = story.send(0, turned_camera)
    accuracy = _accuracy(answers, _swapped_meaning)
    story.traffic.label(answers, _swapped_meaning)
    check = story.check()
    story.tell("camera turned", "the new meanings are learned", accuracy=accuracy, verdict=check.verdict)
    _require(accuracy > 0.85, f"with the new meanings accuracy is only {accuracy:.3f}")
    _require(check.verdict == "ok", f"traffic with the new meanings was called {check.verdict}")


def _a_bad_model_is_refused(story: Story) -> None:
    """A model trained on shuffled labels asks to go live."""
    import numpy as np

    from training.promote import promote
    from training.train import train as train_on

    live = story.live()
    shuffled = np.random.default_rng(SEED).permutation([digit.label for digit in story.train]).tolist()
    folder = write_folder(story.folder / "wrong-labels", story.train, shuffled)
    bad = train_on(story.engine, story.settings, str(folder)).fitted.bundle.manifest.version
    result = promote(story.engine, story.settings, bad, reason="a demo of the gate", actor="demo")
    story.tell("camera turned", f"a model trained on wrong labels is {result.outcome}: {result.why}", version=bad)
    _require(result.outcome == "refused", "the gate let a bad model through")
    _require(story.live() == live, "a refused model went live")


def _a_rollback(story: Story) -> None:
    from perennial.ledger import deployments

    before = story.live()
    earlier = deployments.history(story.engine, story.settings.name)[-2].version
    deployment = deployments.roll_back(story.engine, story.settings.name, reason="a demo", actor="demo")
    seconds = story.traffic.wait_for_version(deployment.version)
    answers, _ = story.send(0, turned_camera)
    _require(deployment.version == earlier, f"the rollback went to {deployment.version}, not to {earlier}")
    _require({answer.version for answer in answers} == {earlier}, "the rollback did not reach the service")
    story.tell("camera turned", f"rolled back from {story.short(before)}; live everywhere in {seconds:.1f} s")


def _retrain_under_traffic(story: Story, pool: Sequence[Digit], change: Change) -> tuple[Any, list[Answer]]:
    """Retrain while requests go on; when promoted, wait until the service has swapped."""
    from training.retrain import retrain

    if not story.quiet:
        console.err.print("retraining, while requests go on ...", markup=False)
    with story.traffic.running(pool, change, _BACKGROUND_PAUSE) as seen:
        result = retrain(story.engine, story.settings, if_due=True)
        swap = ""
        if result.outcome == "promoted":
            assert result.version is not None
            swap = f"; swapped in {story.traffic.wait_for_version(result.version):.1f} s"
            time.sleep(3 * _BACKGROUND_PAUSE)
    failed = len(story.traffic.tally.failures)
    story.tell(
        "camera turned", f"retrained in {result.seconds:.0f} s, {result.outcome}{swap}; "
        f"{len(seen)} requests meanwhile, {failed} failed",
    )  # fmt: skip
    return result, seen


def _true_meaning(digit: Digit) -> str:
    return digit.label


def _swapped_meaning(digit: Digit) -> str:
    return swapped(digit.label, PAIR)


def _accuracy(answers: Sequence[Answer], meaning: Callable[[Digit], str] = _true_meaning) -> float:
    return sum(answer.label == meaning(answer.digit) for answer in answers) / len(answers)


def _require(happened: bool, otherwise: str) -> None:
    if not happened:
        raise DemoFailed(otherwise)


def timeline_table(timeline: Sequence[Moment]) -> Table:
    """The timeline, one line a moment."""
    table = Table(title="perennial demo", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("time", "traffic", "accuracy", "verdict", "model", "what happened"):
        table.add_column(heading, overflow="fold")
    for moment in timeline:
        accuracy = "" if moment.accuracy is None else f"{moment.accuracy:.3f}"
        table.add_row(f"{moment.seconds:.0f} s", moment.traffic, accuracy, moment.verdict, moment.version, moment.event)
    return table


def _finish(story: Story, *, json: bool, keep: bool) -> None:
    from perennial.ledger import checks

    tally = story.traffic.tally
    url = story.server.url
    (newest,) = checks.latest(story.engine, story.settings.name)
    seconds = time.monotonic() - story.begun
    addresses = {
        "report of the last check": newest.report_url,
        "everything else": str(story.folder),
    }
    if keep:
        addresses |= {
            "the live model": f"{url}/v1/model",
            "the last check": f"{url}/v1/status",
            "the audit trail": f"{url}/v1/events",
            "metrics": f"{url}/metrics",
            "API": f"{url}/docs.json",
            "commands on it": f"PERENNIAL_HOME={story.folder} PERENNIAL_NAME={story.settings.name} perennial status",
            "to stop it": f"kill {story.server.process.pid}",
        }
    if json:
        console.print_json(
            {
                "seconds": round(seconds, 1),
                "requests": tally.sent,
                "failed": len(tally.failures),
                "timeline": [
                    {name: getattr(moment, name) for name in Moment.__dataclass_fields__} for moment in story.timeline
                ],
                "addresses": addresses,
            }
        )
        return
    console.out.print(
        f"\n{tally.sent:,} requests, {len(tally.failures)} failed, {seconds:.0f} s. "
        f"{'The server is still running. ' if keep else ''}Look at:"
    )
    for what, where in addresses.items():
        console.out.print(f"  {what}: {where}", markup=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
