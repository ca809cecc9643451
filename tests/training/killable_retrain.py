"""A process that has imported all that `perennial retrain` needs, and forks one for each line it is given.

A line is JSON: `moment` (a name in `MOMENTS`: where it kills itself, or with `stop`
stops; empty: it runs to its end), `challenger` (a bundle that takes the place of what training would make; empty: it is
trained), `output` (a file), `arguments` (of `perennial retrain`), `environment` (variables that it gets besides). The
answer is the child's pid, then its exit status.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bentoml.models
import openvino
import torch

import commands.main
import commands.retrain
import perennial.bundle
import perennial.ledger
import perennial.storage
import training.challenger
import training.fit
import training.publish
import training.retrain
import training.trial
from perennial.bundle import Bundle, new_version, open_bundle, write_bundle
from perennial.ledger import EventKind, deployments, events, models
from perennial.progress import Step
from training.fit import Fitted

Die = Callable[[], None]


@dataclass(frozen=True)
class Call:
    """Before or after the `nth` call of a function that `module` looks up under `name`; with `kind`, of an event's."""

    module: Any
    name: str
    before: bool = True
    nth: int = 1
    kind: str = ""

    def arm(self, die: Die) -> None:
        original = getattr(self.module, self.name)
        calls = 0

        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += not self.kind or self.kind in arguments
            due = calls == self.nth and (not self.kind or self.kind in arguments)
            if due and self.before:
                die()
            result = original(*arguments, **options)
            if due:
                die()
            return result

        setattr(self.module, self.name, called)


@dataclass(frozen=True)
class At:
    """When a step of the progress is told: its beginning, or its end."""

    stage: str
    end: bool = False

    def arm(self, die: Die) -> None:
        show = commands.retrain.console.progress

        def progress() -> Any:
            return _Listening(show(), self._heard(die))

        commands.retrain.console.progress = progress

    def _heard(self, die: Die) -> Callable[[Step], None]:
        def heard(step: Step) -> None:
            if step.stage == self.stage and (not self.end or step.done == step.total):
                die()

        return heard


class _Listening:
    def __init__(self, inner: Any, heard: Callable[[Step], None]) -> None:
        self._inner, self._heard = inner, heard

    def __enter__(self) -> Callable[[Step], None]:
        show = self._inner.__enter__()

        def both(step: Step) -> None:
            show(step)
            self._heard(step)

        return both

    def __exit__(self, *error: Any) -> Any:
        return self._inner.__exit__(*error)


#: What a kill comes in the way of, in the order of a retrain. The first part is of training itself.
WHILE_TRAINING: Final[dict[str, Call | At]] = {
    "weights": At("loading the pretrained weights"),
    "embedding images": At("embedding images", end=True),
    "choosing a strategy": Call(training.fit.strategy, "choose", before=False),
    "exporting the graph": At("exporting the graph", end=True),
    "scoring images": At("scoring images"),
}
AROUND_TRAINING: Final[dict[str, Call | At]] = {
    "with the lease just taken": Call(training.retrain, "note_schedule"),
    "reading captures": At("reading captures"),
    "before it is written that it started": Call(events, "add", kind=EventKind.RETRAIN_STARTED),
    "after it is written that it started": Call(events, "add", before=False, kind=EventKind.RETRAIN_STARTED),
    "reading images": At("reading images", end=True),
    "a bundle with half of its files on disk": Call(perennial.bundle, "_flush", nth=3),
    "a whole bundle that nobody knows": Call(training.trial, "publish"),
    "half of a bundle in storage": Call(perennial.storage.os, "replace", nth=3),
    "a bundle on its way into the model store": Call(training.publish.shutil, "copytree", before=False),
    "a bundle in the model store, not in the ledger": Call(models, "register"),
    "a bundle in the ledger": Call(models, "register", before=False),
    "judging": At("judging"),
    "judged": Call(training.trial, "judge", before=False),
    "before the gate's event": Call(events, "add", kind=EventKind.GATE_PASSED),
    "after the gate's event": Call(events, "add", before=False, kind=EventKind.GATE_PASSED),
    "amid the transaction that deploys": Call(deployments.events, "append", before=False, kind=EventKind.DEPLOYED),
    "deployed": Call(deployments, "deploy", before=False),
}
MOMENTS: Final = {**WHILE_TRAINING, **AROUND_TRAINING}
#: Where a retrain that was not asked for by a check asks for itself.
ASKED: Final = "it is asked for, and not yet started"
_ASKING: Final = {ASKED: Call(events, "add", before=False, kind=EventKind.RETRAIN_REQUESTED)}


def _copy_of(challenger: Bundle, folder: Path) -> Bundle:
    def fill(place: Path) -> None:
        for name in challenger.manifest.files:
            shutil.copyfile(challenger.path / name, place / name)

    manifest = challenger.manifest.model_copy(update={"version": new_version(), "files": {}})
    return write_bundle(folder, manifest, fill)


def _run(asked: dict[str, Any]) -> None:
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    os.environ.update(asked["environment"])
    if asked["challenger"]:
        challenger = open_bundle(Path(asked["challenger"]))
        training.challenger.fit = lambda _, bundles, **__: Fitted(_copy_of(challenger, bundles), 0.0)
    if asked["moment"]:
        number = signal.SIGSTOP if asked["stop"] else signal.SIGKILL
        {**MOMENTS, **_ASKING}[asked["moment"]].arm(lambda: os.kill(os.getpid(), number))
    sys.argv = ["perennial", "retrain", *asked["arguments"], "--json"]
    commands.main.main()


def serve() -> None:
    gc.freeze()  # the children look for no garbage in what is shared, so it stays shared
    print("ready", bentoml.models.__name__, openvino.__version__, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _run(json.loads(line))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
