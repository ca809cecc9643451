"""Time to the same accuracy on ants and bees: Perennial from the shell beside its peers, one after the other.

Every contender is a process of its own, with the same weights and photos. Seconds count from its start, so Python,
imports and, of Perennial, the embedding of every photo (its cache is empty), export and report are in them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.training import draws
from benchmarks.training.results import ACCURACY, LEFT_OUT, SECONDS, Measurement, Sheet, values
from training.evaluate import accuracy_interval

TASK: Final = "ants-and-bees"
PROBE: Final = "perennial-linear_probe"
AUTO: Final = "perennial-auto"
TUTORIAL: Final = "tutorial"
FASTAI: Final = "fastai"
METHODS: Final = (PROBE, AUTO, TUTORIAL, FASTAI)
#: Metrics by epoch: seconds since the process was started, and since training began.
SINCE_START: Final = "since_start"
SINCE_TRAINING: Final = "since_training"
#: (contender, metric, the most or least that is asked)
LEAST_AUTO: Final = 0.954
MOST_AUTO_SECONDS: Final = 90.0
MOST_PROBE_SECONDS: Final = 12.0
LEAST_RATIO: Final = {TUTORIAL: 15.0, FASTAI: 3.0}
_LONGEST: Final = 7200.0  # seconds
_AS_WRITTEN: Final = 1e-6  # accuracies have six digits in the files
_ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Race:
    """`peer_python` runs the peers; `epochs` are the tutorial's, `fastai_epochs` what `fine_tune` is called with, each
    a contender of its own; `warm` has every package imported once before anything is timed."""

    data: Path
    weights: Path
    folder: Path
    peer_python: str
    epochs: int = 25
    fastai_epochs: tuple[int, ...] = (4,)
    warm: bool = True


def measure(sheet: Sheet, race: Race, methods: Sequence[str], repeats: int, say: Callable[[str], None]) -> None:
    """Rounds in which each contender runs once; every second round goes backwards. The round is the seed."""
    contenders = [
        f"{FASTAI}-{epochs}" if method == FASTAI else method
        for method in methods
        for epochs in (race.fastai_epochs if method == FASTAI else (0,))
    ]
    missing = FASTAI in methods and not installed(race.peer_python, "fastai")
    if missing:
        note = f"fastai is not installed for {Path(race.peer_python).name}: pip install 'perennial[bench-training]'"
        say(f"LEFT OUT: {note}, or name a Python that has it with --peer-python")
        left_out = [name for name in contenders if name.startswith(FASTAI)]
        contenders = [name for name in contenders if name not in left_out]
        sheet.add([Measurement(TASK, name, 0, LEFT_OUT, 1.0, "", note=note) for name in left_out])
    if race.warm:
        _warm(race, contenders)
    for repeat in range(repeats):
        for name in contenders if repeat % 2 == 0 else contenders[::-1]:
            if sheet.has(TASK, name, repeat):
                continue
            _read(race)  # every contender finds the files in memory
            rows = _perennial(race, name, repeat) if name.startswith("perennial") else _peer(race, name, repeat)
            sheet.add(rows)
            accuracy = next(row for row in rows if row.metric == ACCURACY and row.epoch == 0)
            say(f"round {repeat + 1}, {name}: {accuracy.value:.4f} {accuracy.note}, {rows[-1].value:.1f} s")


def installed(python: str, package: str) -> bool:
    """Whether that interpreter would find a package."""
    code = f"import importlib.util; raise SystemExit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", code], env=_environment(None), check=False).returncode == 0


# --- contenders ------------------------------------------------------------------------------------------


def _perennial(race: Race, name: str, seed: int) -> list[Measurement]:
    home = race.folder / "home"
    shutil.rmtree(home, ignore_errors=True)  # no cache, no model, no settings
    home.mkdir(parents=True)
    command = [
        sys.executable, "-m", "commands.main", "train", str(race.data), "--json", "--backbone", draws.BACKBONE,
        "--weights", str(race.weights), "--strategy", name.removeprefix("perennial-"), "--seed", str(seed),
    ]  # fmt: skip
    spent = _run(command, home, race.folder / "perennial")
    found = json.loads((race.folder / "perennial.out").read_text("utf-8"))
    tested = found["counts"]["test"]
    correct = round(found["metrics"]["accuracy"]["value"] * tested)
    return [
        Measurement(TASK, name, seed, ACCURACY, correct / tested, "share", note=found["strategy"]),
        Measurement(TASK, name, seed, "tested", tested, "images"),
        Measurement(TASK, name, seed, "fit_seconds", found["seconds"], "s"),
        *_spent(name, seed, spent),
    ]


def _peer(race: Race, name: str, seed: int) -> list[Measurement]:
    kind, _, count = name.partition("-")
    out = race.folder / "peer.jsonl"
    out.unlink(missing_ok=True)
    command = [
        race.peer_python, "-m", f"benchmarks.training.peer_{kind}", str(race.data), str(race.weights), str(out),
        "--epochs", count or str(race.epochs), "--seed", str(seed),
    ]  # fmt: skip
    spent = _run(command, None, race.folder / "peer")
    epochs = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    rows = []
    for noted in epochs:
        share = noted["correct"] / noted["tested"]
        rows.append(Measurement(TASK, name, seed, ACCURACY, share, "share", noted["epoch"]))
        for metric in (SINCE_START, SINCE_TRAINING):
            rows.append(Measurement(TASK, name, seed, metric, noted[metric], "s", noted["epoch"]))
    best, tested = max(noted["correct"] for noted in epochs), epochs[0]["tested"]
    note = f"best of {len(epochs)} epochs, which the validation photos picked"
    return [
        *rows,
        Measurement(TASK, name, seed, ACCURACY, best / tested, "share", note=note),
        Measurement(TASK, name, seed, "tested", tested, "images"),
        *_spent(name, seed, spent),
    ]


def _spent(name: str, seed: int, spent: tuple[float, float]) -> list[Measurement]:
    wall, processor = spent
    return [
        Measurement(TASK, name, seed, "processor_seconds", processor, "s"),
        Measurement(TASK, name, seed, SECONDS, wall, "s"),
    ]


def _run(command: list[str], home: Path | None, log: Path) -> tuple[float, float]:
    """Wall and processor seconds, of the process and all that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    environment = _environment(home) | {"BENCH_BEGAN": repr(began)}
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        done = subprocess.run(
            command, env=environment, cwd=log.parent, stdout=out, stderr=err, timeout=_LONGEST, check=False
        )
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.with_suffix('.err').read_text('utf-8', 'replace')}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _environment(home: Path | None) -> dict[str, str]:
    """This process's own, without settings of the user's that would change what is measured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PERENNIAL_", "BENTOML_"))}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), kept.get("PYTHONPATH")]))
    if home is not None:
        kept |= {"PERENNIAL_HOME": str(home), "BENTOML_HOME": str(home / "bentoml")}
    return kept


def _warm(race: Race, contenders: Sequence[str]) -> None:
    """So that nobody's first run compiles Python files for the others' benefit."""
    imports = {sys.executable: ["training.train"]} if any(name.startswith("perennial") for name in contenders) else {}
    if TUTORIAL in contenders:
        imports.setdefault(race.peer_python, []).append("torchvision")
    if any(name.startswith(FASTAI) for name in contenders):
        imports.setdefault(race.peer_python, []).append("fastai.vision.all")
    for python, names in imports.items():
        command = [python, "-W", "ignore", "-c", f"import {', '.join(names)}"]
        subprocess.run(command, env=_environment(None), check=True)


def _read(race: Race) -> None:
    for path in (race.weights, *race.data.rglob("*.jpg")):
        path.read_bytes()


# --- what came of it -------------------------------------------------------------------------------------


def first_reached(rows: Sequence[Measurement], name: str, seed: int, accuracy: float) -> float | None:
    """Seconds from the process's start to the end of the first epoch that has this accuracy; None if none has."""
    mine = [row for row in rows if (row.method, row.seed) == (name, seed) and row.epoch]
    reached = [row.epoch for row in mine if row.metric == ACCURACY and row.value >= accuracy - _AS_WRITTEN]
    if not reached:
        return None
    return next(row.value for row in mine if row.metric == SINCE_START and row.epoch == min(reached))


@dataclass(frozen=True)
class Compared:
    """A peer against Perennial's probe in one round. `reached` is when it had the probe's accuracy, `reached_low` when
    the lower end of that accuracy's interval, each None if never; `seconds` is all it took."""

    name: str
    seed: int
    probe_seconds: float
    seconds: float
    reached: float | None
    reached_low: float | None

    @property
    def ratio(self) -> float:
        """How many times as long as the probe the peer took to the same accuracy: at least this, if it never got
        there."""
        return (self.seconds if self.reached is None else self.reached) / self.probe_seconds

    @property
    def ratio_at_end(self) -> float:
        """The same for all that the peer does. It hands over its model then: which epoch is the first with that
        accuracy is known in hindsight, and to those who look at the photos that judge."""
        return self.seconds / self.probe_seconds


def compare(rows: Sequence[Measurement]) -> list[Compared]:
    """Every peer in every round that has the probe as well."""
    found = []
    for row in rows:
        if row.metric != SECONDS or row.method.startswith("perennial"):
            continue
        probe = {
            other.metric: other.value
            for other in rows
            if (other.method, other.seed, other.epoch) == (PROBE, row.seed, 0)
        }
        if SECONDS not in probe:
            continue
        right = accuracy_interval(round(probe[ACCURACY] * probe["tested"]), round(probe["tested"]))
        found.append(
            Compared(
                row.method, row.seed, probe[SECONDS], row.value,
                first_reached(rows, row.method, row.seed, right.value),
                first_reached(rows, row.method, row.seed, right.low),
            )
        )  # fmt: skip
    return found


def text(sheet: Sheet) -> list[str]:
    """Medians over the rounds: accuracy with Wilson's interval, seconds, and the ratios."""
    rows = sheet.rows
    names = list(dict.fromkeys(row.method for row in rows if row.metric == SECONDS))
    lines = ["ants and bees: medians of the rounds; accuracy on the validation photos with Wilson's 95 % interval"]
    lines.append(f"  {'':<24}{'rounds':>6}  accuracy                 wall s  processor s")
    for name in names:
        share, tested = median(values(rows, TASK, name)), round(median(values(rows, TASK, name, "tested")))
        found = accuracy_interval(round(share * tested), tested)
        wall, processor = (median(values(rows, TASK, name, metric)) for metric in (SECONDS, "processor_seconds"))
        lines.append(
            f"  {name:<24}{len(values(rows, TASK, name)):>6}  {share:.4f} [{found.low:.3f}, {found.high:.3f}]"
            f"{wall:>11.1f}{processor:>13.1f}"
        )
    lines += [f"  left out: {row.method}: {row.note}" for row in rows if row.metric == LEFT_OUT]
    compared = compare(rows)
    if compared:
        lines.append("time to the accuracy of Perennial's probe, from the start of the process, each round")
        lines.append(
            f"  {'':<24}{'round':>5}{'reached s':>11}{'lower end s':>13}{'all of it s':>13}  ratio to the probe"
        )
    for each in compared:
        lines.append(
            f"  {each.name:<24}{each.seed + 1:>5}{_seconds(each.reached):>11}{_seconds(each.reached_low):>13}"
            f"{each.seconds:>13.1f}  {_ratio([each])}"
        )
    return [*lines, *_goals(rows, compared)]


def _goals(rows: Sequence[Measurement], compared: Sequence[Compared]) -> list[str]:
    lines = []

    def goal(met: bool, what: str) -> None:
        lines.append(f"  {'met   ' if met else 'MISSED'} {what}")

    if values(rows, TASK, AUTO):
        share, wall = median(values(rows, TASK, AUTO)), median(values(rows, TASK, AUTO, SECONDS))
        # 146 of 153 photos are .9542.
        goal(share >= LEAST_AUTO - 5e-4, f"auto: {share:.4f} (asked at least {LEAST_AUTO})")
        goal(wall <= MOST_AUTO_SECONDS, f"auto: {wall:.1f} s (asked at most {MOST_AUTO_SECONDS:g})")
    if values(rows, TASK, PROBE):
        wall = median(values(rows, TASK, PROBE, SECONDS))
        goal(wall <= MOST_PROBE_SECONDS, f"probe: {wall:.1f} s (asked at most {MOST_PROBE_SECONDS:g})")
    for name in dict.fromkeys(each.name for each in compared):
        mine = [each for each in compared if each.name == name]
        least = LEAST_RATIO[name.partition("-")[0]]
        ratio, at_end = median(each.ratio for each in mine), median(each.ratio_at_end for each in mine)
        goal(
            ratio >= least,
            f"time to the same accuracy, {name}: {_ratio(mine)}; to the end of its recipe {at_end:.1f}x "
            f"(asked {least:g}x)",
        )
    return lines


def _ratio(found: Sequence[Compared]) -> str:
    """The median ratio; `>` where a round never got there, so that the ratio is a bound."""
    never = sum(each.reached is None for each in found)
    bound = f", never reached in {never} of {len(found)}" if never else ""
    return f"{'> ' if never else ''}{median(each.ratio for each in found):.1f}x{bound}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"
