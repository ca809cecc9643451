"""Every command that the README and the pages in `docs/` show works as it stands there.

They run one after the other, page by page, against one installation: a model trained on two folders of images, a second
one to go back and forth between, a real server with a key, and what it was sent. What cannot run in a test is in
`command_checks.CHECKED`, each with what is checked of it instead; a command that is neither fails.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
import pytest
import typer
from PIL import Image

from commands.demo_traffic import served
from perennial.ledger import deployments, models, open_ledger
from perennial.settings import load_settings
from service.keys import digest_of, new_key
from tests.command_checks import CHECKED, make_knows_it, module_has_the_options
from tests.documented_commands import (
    PAGES,
    ROOT,
    inline_code,
    outside_of_blocks,
    parse,
    shell_commands,
)
from tests.in_process import perennial_here
from tests.webhook_receiver import Receiver

COMMANDS = {page: shell_commands(text) for page, text in PAGES.items()}
ALL = [command for commands in COMMANDS.values() for command in commands]
#: What stands in a page where the reader puts something of their own; by what the installation puts there.
PLACEHOLDERS: dict[str, str] = {
    "127.0.0.1:3000": "127.0.0.1:{port}",
    "HOST:3000": "127.0.0.1:{port}",
    "VERSION": "{other}",
    "20261121-001723-77540": "{other}",
    '"ID"': '"{prediction}"',
    "01a1fb77-194f-7ebc-b7bf-c270089afb4e": "{prediction}",
    '"aster"': '"bees"',
    '"guitar"': '"bees"',
}
#: Exit codes other than 0, each for the reason that it has in this installation.
EXIT_CODES: dict[str, tuple[int, ...]] = {
    "perennial ui": (4,),  # no check has tested anything yet
    "perennial notify": (4,),  # they know everything
    "perennial retrain": (0, 4, 11),  # better, too few labels to tell, refused: that is the gate's to say
    "perennial retrain --dry-run": (4,),
    "perennial retrain --if-due": (4,),
    'perennial retrain --reason "new lamp"': (4,),
    "perennial models promote VERSION": (0, 11),
    "perennial prune": (4,),  # nothing is old
    "perennial prune --dry-run": (4,),
    "perennial prune --json": (4,),
    "perennial models rollback --if-worse": (4,),
    "perennial rollout status": (4,),  # none is on
    "perennial rollout advance": (4,),
    'perennial rollout advance --force --reason "we looked at it"': (4,),
    'perennial rollout stop --reason "it looks wrong"': (4,),
}
#: What is set for one command alone.
SETTINGS: dict[str, dict[str, str]] = {
    "perennial retrain": {"PERENNIAL_RETRAIN__MIN_LABELS": "20"},  # the others of its kind wait for labels
}
#: What makes its models.
TRAINED = ("perennial train photos", "perennial train photos --budget 60")
SERVED = ("perennial serve",)


# --- the installation -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Installation:
    """A home with models, a server on it, and a folder in which a reader would be."""

    folder: Path
    port: int
    environment: Mapping[str, str]
    first: str = ""
    other: str = ""
    prediction: str = ""
    done: set[str] = field(default_factory=set)

    def run(self, command: str) -> None:
        """Run it as a reader would, once."""
        if command in self.done:
            return
        self.done.add(command)
        self.before(command)
        filled = command
        for placeholder, pattern in PLACEHOLDERS.items():
            value = pattern.format(port=self.port, other=self.other, prediction=self.prediction)
            filled = filled.replace(placeholder, value)
        with mock.patch.dict(os.environ, SETTINGS.get(command, {})):
            is_ours = re.match(r"perennial [^|;&\n]*$", filled) is not None
            code, out, err = (self.perennial if is_ours else self.shell)(filled)
        assert code in EXIT_CODES.get(command, (0,)), f"{command}: exit code {code}\n{out}\n{err}"
        if (" --json" in command and is_ours) or re.match(r"curl [^|]*/v1/", command):
            self.look_at(command, json.loads(out))
        if "/v1/predict" in command:
            self.settle()

    def perennial(self, command: str) -> tuple[int, str, str]:
        folder = self.folder
        if command.startswith("perennial init"):  # it leaves a file alone that is there
            folder = folder / f"init-{len(self.done)}"
            folder.mkdir()
        done = perennial_here(*shlex.split(command)[1:], cwd=folder)
        return done.returncode, done.stdout, done.stderr

    def shell(self, command: str) -> tuple[int, str, str]:
        curl = "curl() { command curl --silent --show-error --fail-with-body --noproxy '*' \"$@\"; }"
        done = subprocess.run(
            ["bash", "-c", f"set -eu -o pipefail\n{curl}\n{command}"], cwd=self.folder, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def look_at(self, command: str, answer: dict[str, Any]) -> None:
        if "prediction_id" in answer:
            self.prediction = answer["prediction_id"]
            assert answer["label"] == "bees"
        if "/v1/feedback" in command:
            assert answer["accepted"] == 1

    def before(self, command: str) -> None:
        """What a reader has by then: something to go back to, or to make live."""
        live = self.other if "rollback" in command else self.first if "promote" in command else ""
        if live:
            engine, name = self.ledger()
            if deployments.live(engine, name).version != live:
                deployments.deploy(engine, name, live, reason="for what comes next", actor="a test")

    def settle(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, verify=False) as client:
            for _ in range(200):
                text = client.get("/metrics").text
                waiting = re.findall(
                    r"^perennial_recorder_pending_(?:rows|captures)\S* (\S+)$", text, flags=re.MULTILINE
                )
                if not any(map(float, waiting)):
                    return
                time.sleep(0.05)
        raise AssertionError("the predictions do not arrive in the ledger")

    def ledger(self) -> tuple[Any, str]:
        settings = load_settings()
        return open_ledger(settings.ledger_url), settings.name


def write_images(folder: Path, each: int, seed: int, light: float = 1.0) -> None:
    """Ants are dark discs on light, bees light squares on dark."""
    random = np.random.default_rng(seed)
    for label, dark in (("ants", True), ("bees", False)):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(150, 255, (64, 64, 3)) if dark else random.integers(0, 90, (64, 64, 3))
            y, x = np.mgrid[:64, :64] - random.integers(20, 44)
            inside = x**2 + y**2 < 150 if dark else (abs(x) < 12) & (abs(y) < 12)
            pixels[inside] = 30 if dark else 220
            Image.fromarray((pixels * light).astype(np.uint8)).save(folder / label / f"{number}.jpg")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("curl or bash is not installed")
    folder = tmp_path_factory.mktemp("reader")
    write_images(folder / "photos", 20, seed=0)
    write_images(folder / "new", 20, seed=1, light=0.6)
    for name, source in {"photo.jpg": "bees/0.jpg", "other.jpg": "ants/0.jpg"}.items():
        shutil.copy(folder / "photos" / source, folder / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    shutil.copy(ROOT / ".env.example", folder)
    shutil.copy(ROOT / "deploy" / "prometheus" / "alerts.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    key, home = new_key(), folder / "home"
    home.mkdir()
    with ExitStack() as open_until_the_end:
        hook = open_until_the_end.enter_context(Receiver().listening())
        environment = {
            "PERENNIAL_HOME": str(home),
            "BENTOML_HOME": str(home / "bentoml"),
            "PERENNIAL_SERVE__PORT": str(port),
            "PERENNIAL_SERVE__KEYS": json.dumps([{"name": "ann", "scopes": ["admin"], "sha256": digest_of(key)}]),
            "PERENNIAL_MONITOR__PORT": "0",  # the watcher of another test may have it
            "PERENNIAL_MONITOR__REPORT": "drift",  # drawing one takes longer than all commands here together
            "PERENNIAL_NOTIFY__WEBHOOKS": json.dumps([hook.url]),
            "PERENNIAL_TRAIN__WEIGHTS": "builtin",
            "PERENNIAL_TRAIN__STRATEGY": "linear_probe",  # that it runs is asked here, not what it finds
            "PERENNIAL_TRAIN__THREADS": "1",
            "PERENNIAL_RETRAIN__NICENESS": "0",  # this process would keep it
            "KEY": key,
        }
        made = Installation(folder, port, environment)
        with mock.patch.dict(os.environ, environment):
            for command in TRAINED:  # the first one goes live
                made.run(command)
            made.first, made.other = (model.version for model in models.all_of(*made.ledger()))
            open_until_the_end.enter_context(served(port, home / "server.log", keep=False))
            made.run("curl -F image=@photo.jpg http://127.0.0.1:3000/v1/predict")
        yield made


@pytest.fixture
def reader(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    for variable, value in installation.environment.items():
        monkeypatch.setenv(variable, value)
    return installation


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page, commands in COMMANDS.items() if commands])
def test_every_command_of_a_page_works(page: str, reader: Installation) -> None:
    for command in COMMANDS[page]:
        check = next((check for pattern, check in CHECKED.items() if re.fullmatch(pattern, command)), None)
        if check is not None:
            check(command)
        elif command not in SERVED:  # which runs meanwhile
            reader.run(command)


def test_every_entry_of_the_tables_is_of_a_command_that_is_shown() -> None:
    text = "\n".join(ALL)
    assert [pattern for pattern in CHECKED if not any(re.fullmatch(pattern, each) for each in ALL)] == []
    assert [each for each in PLACEHOLDERS if each not in text] == []
    assert [each for each in (*EXIT_CODES, *SETTINGS, *SERVED, *TRAINED) if each not in ALL] == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_command_is_hidden_in_a_block_of_another_kind(page: str) -> None:
    """Blocks without a language, and those by indentation, are for what is printed."""
    programs = r"(perennial|curl|make|python3?|docker|kubectl|systemctl|torchrun|promtool|cp|sed|pip|bentoml)"
    assert re.findall(rf"^ {{4,}}{programs} .*$", outside_of_blocks(PAGES[page]), flags=re.MULTILINE) == []
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", PAGES[page], flags=re.MULTILINE | re.DOTALL):
        if language != "sh":
            assert re.findall(rf"^{programs} (?!->)(?=\S*[-./]|\w+$).*$", block, flags=re.MULTILINE) == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_within_the_text_is_one(page: str) -> None:
    for code in inline_code(PAGES[page]):
        if re.match(r"perennial [a-z-]", code) and not code.endswith("..."):
            try:
                parse(shlex.split(code))
            except typer.BadParameter as error:
                if "Missing parameter" not in str(error):  # an argument may be left out; nothing may be wrong
                    raise
        elif re.match(r"make [a-z-]+$", code):
            make_knows_it(code)
        elif re.match(r"python (-m (benchmarks|docs)|docs|deploy)", code):
            module_has_the_options(code)
