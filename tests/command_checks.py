"""What is checked of the documented commands that no test can run: containers, a cluster, hours of benchmarks, what
goes on until it is ended. Each check raises where the command names something that there is not."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from typing import Final

import yaml

from perennial.settings import known_keys
from tests.documented_commands import ROOT, parse, perennial_within

VARIABLES: Final = {f"PERENNIAL_{key.replace('.', '__')}".upper() for key in known_keys()} | {"PERENNIAL_CONFIG"}


def make_knows_it(command: str) -> None:
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def module_has_the_options(command: str) -> None:
    """`python -m MODULE` or `python FILE`: it is there, and its source names each option."""
    words = shlex.split(command)[1:]
    if words[0] == "-m":
        module = ROOT.joinpath(*words[1].split("."))
        source = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    else:
        source = ROOT / words[0]
    text = source.read_text("utf-8")
    assert "__main__" in text or source.name == "__main__.py"
    for option in (word for word in words if word.startswith("--") and word != "--help"):
        assert f'"{option}"' in text, f"{source} has no {option}"


def command_parses(command: str) -> None:
    words = shlex.split(command)
    parse(words[: words.index("|")] if "|" in words else words)


def compose_has_the_service(command: str) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    words = shlex.split(command)
    if words[2] in ("run", "exec"):
        assert next(word for word in words[3:] if not word.startswith("-")) in services
        parse(perennial_within(command))
    else:
        assert words[2:] == ["up", "--build", "--detach"]


def manifests_ask_for_the_secret(command: str) -> None:
    words = shlex.split(command)
    assert words[:4] == ["kubectl", "create", "secret", "generic"]
    manifests = "".join(path.read_text("utf-8") for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    keys = [word.removeprefix("--from-literal=").partition("=")[0] for word in words[5:]]
    one, all_of_it = f"secretKeyRef: {{ name: {words[4]}, key: {keys[0]} }}", f"secretRef: {{ name: {words[4]},"
    assert one in manifests or all_of_it in manifests


def files_are_there(command: str) -> None:
    named = [word for word in shlex.split(command) if word.startswith("deploy/")]
    assert named
    assert all(list(ROOT.glob(word)) for word in named)


def units_are_there(command: str) -> None:
    units = [word for word in shlex.split(command) if re.search(r"\.(service|timer)$", word)]
    assert units
    assert all((ROOT / "deploy" / "systemd" / unit).exists() for unit in units)


def units_run_as_that_user(command: str) -> None:
    user = shlex.split(command)[-1]
    units = (ROOT / "deploy" / "systemd").glob("*.service")
    assert all(f"\nUser={user}\n" in unit.read_text("utf-8") for unit in units)


def extras_are_there(command: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.search(r"'perennial\[([\w,]+)\]'", command)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def promtool_takes_it(command: str) -> None:
    files_are_there(command)
    if shutil.which("promtool") is not None:
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def command_within_parses(command: str) -> None:
    """`PROGRAM ... perennial ...`: the last part is a command of ours, and what is set for it are settings."""
    parse(perennial_within(command))
    assert set(re.findall(r"\b(PERENNIAL_\w+)=", command)) <= VARIABLES


def torchrun_takes_it(command: str) -> None:
    from torch.distributed.run import get_args_parser

    parse(perennial_within(command))
    assert get_args_parser().parse_args(shlex.split(command)[1:]).no_python


def run_by(test: str, how: str) -> Callable[[str], None]:
    """The command parses, and this test file runs it."""

    def check(command: str) -> None:
        command_parses(command)
        assert how in (ROOT / test).read_text("utf-8"), f"{test} does not run it any more"

    return check


#: By what the whole command is like.
CHECKED: Final[dict[str, Callable[[str], None]]] = {
    r"make \S+": make_knows_it,
    r"source .venv/bin/activate": lambda command: make_knows_it("make setup"),
    r"python -m benchmarks\..*": module_has_the_options,
    r"docker compose .*": compose_has_the_service,
    r"kubectl create secret .*": manifests_ask_for_the_secret,
    r"kubectl apply .*": files_are_there,
    r"python3 -m venv /opt/perennial && .*": extras_are_there,
    r"useradd .*": units_run_as_that_user,
    r"cp deploy/.*": files_are_there,
    r"systemctl .*": units_are_there,
    r"/opt/perennial/bin/perennial .*": command_within_parses,
    r"systemd-run .*": command_within_parses,
    r"promtool .*": promtool_takes_it,
    r"torchrun .*": torchrun_takes_it,
    # They go on until they are ended.
    r"perennial watch( --schedule .*)?": run_by("tests/monitoring/test_watch.py", '"watch"'),
    r"perennial events --follow": run_by("tests/commands/test_events_command.py", '"--follow"'),
    r"perennial status --watch( \d+)?": run_by("tests/commands/test_status_view.py", '"--watch"'),
    # They take long, write into the shell's own files, or need a pretrained network.
    r"perennial train photos --strategy partial": run_by("tests/training/test_train_command.py", '"partial"'),
    r"perennial train photos --log csv": run_by("tests/training/test_train_command.py", '"--log", "csv"'),
    r"perennial --install-completion": lambda command: None,
    r"perennial import .*": run_by("tests/training/test_import_model.py", "import_model.import_model"),
}
