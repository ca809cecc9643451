"""The ways to keep a model fresh. Each is asked after every window, with that window's labels in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from unittest.mock import patch

from safetensors.torch import load_file, save_file

from benchmarks.loop.site import NAME, Site
from monitoring.check import Check, run_check
from monitoring.verdict import CALM
from perennial.bundle import WEIGHTS, Bundle, Pretrained
from perennial.ledger import EventKind, deployments, events, new_classes, watches
from training import captures as labelled
from training import due
from training.captures import Captures
from training.challenger import Challenger, make_challenger
from training.datasets import LabelledImages, Row, Split, load
from training.fit import FitRequest, fit
from training.gate import GateDecision
from training.publish import publish
from training.retrain import retrain
from training.rollback import roll_back_if_worse

NEVER, EVERY, FIRES, WARM, PERENNIAL = (
    "never", "every window", "every alarm", "warm start", "Perennial",
)  # fmt: skip
_EVERYTHING: Final = 1_000_000  # labels; that is, all
_LEAST: Final = 10  # labels of a new class that `every window` learns: with fewer there may be none to train on


@dataclass(frozen=True)
class Asked:
    """What an arm did after a window: what its check said, and how a retrain ended ("" for none)."""

    verdict: str = ""
    outcome: str = ""


Arm = Callable[[Site], Asked]


def never(site: Site) -> Asked:
    """Nothing, and no check either."""
    return Asked()


def every_window(site: Site) -> Asked:
    """What `perennial train` makes of the original images and of every label so far, live at once."""
    with site.clock.of("training"):
        manifest = site.bundle.manifest
        new = new_classes.find(site.engine, NAME, manifest.classes, _LEAST)
        found = labelled.find(
            site.engine, NAME, manifest.version, window=_EVERYTHING, classes=manifest.classes, new=new
        )  # fmt: skip
        found = labelled.verified(found, site.storage, site.limits)
        train = site.settings.train
        original = load(
            manifest.dataset.location, validation=train.validation, test=train.test, seed=manifest.seed,
            limits=site.limits,
        )  # fmt: skip
        images = _together(original, found, validation=train.validation, test=train.test)
        request = FitRequest(
            images, NAME, manifest.backbone, manifest.pretrained.source, "linear_probe", manifest.input.crop,
            manifest.seed, threads=1, parent=manifest.version, pretrained_sha256=manifest.pretrained.sha256 or None,
        )  # fmt: skip
        bundle = fit(
            request, bundles=site.settings.home_path / "models", cache=site.settings.cache_path, limits=site.limits
        ).bundle
        publish(bundle, site.engine, site.storage)
        events.add(site.engine, NAME, EventKind.RETRAIN_STARTED, {"why": "every window"})
        deployments.deploy(site.engine, NAME, bundle.manifest.version, reason="every window", actor="benchmark")
    return Asked(outcome="promoted")


def _together(original: LabelledImages, found: Captures, *, validation: float, test: float) -> LabelledImages:
    """Labelled captures as if they lay in the folder of the original images."""
    rows = list(original.rows)
    for capture in (*found.fresh, *found.older):
        place = int(sha256(capture.digest.encode()).hexdigest()[:8], 16) / 2**32
        split: Split = "test" if place < test else "validation" if place < test + validation else "train"
        rows.append(
            Row(capture.url, capture.label, capture.digest, split, 1.0, "capture", split != "train", capture.header)
        )
    classes = {*original.classes, *(row.label for row in rows)}
    return replace(original, classes=tuple(sorted(classes)), rows=tuple(sorted(rows, key=lambda row: row.digest)))


def drift_fires(site: Site) -> Asked:
    """The same check and the same retrain as Perennial, on every alarm and without a gate."""
    check = _checked(site)
    if check.verdict in CALM:
        return Asked(str(check.verdict))
    detail = {"why": "drift", "verdict": str(check.verdict), "window": check.window()}
    events.add(site.engine, NAME, EventKind.RETRAIN_REQUESTED, detail)

    def evaluate(*_: object, **__: object) -> None:
        return None

    def judge(*_: object, **__: object) -> GateDecision:
        return GateDecision("pass", "there is no gate", (), None, None, (), {}, None, None)

    with patch.multiple("training.trial", evaluate=evaluate, judge=judge):
        return _retrained(site, check)


def perennial(site: Site) -> Asked:
    """A look at what has just gone live, a check, and a retrain if it, the schedule or new labels call for one: what
    `perennial watch` does."""
    with site.clock.of("checks"):
        if watches.open_watch(site.engine, NAME) is not None:
            roll_back_if_worse(site.engine, site.settings)
    check = _checked(site)
    if not (check.retrain.due or due.is_worth_a_try(site.engine, site.settings)):
        return Asked(str(check.verdict))
    return _retrained(site, check)


def warm(site: Site) -> Asked:
    """As Perennial, gate and all, but a challenger's last stages are fine-tuned from the last model's weights."""
    with patch.multiple("training.trial", make_challenger=_from_the_last(site)):
        return perennial(site)


def _from_the_last(site: Site) -> Callable[..., Challenger]:
    def make(
        champion: Bundle, captures: Captures, settings: Any, *, changed_before: Mapping[str, datetime] | None = None,
        **more: Any,
    ) -> Challenger:  # fmt: skip
        return make_challenger(warmed(champion, site), captures, settings, changed_before=changed_before, **more)

    return make


def warmed(champion: Bundle, site: Site) -> Bundle:
    """The same bundle, as if its own network were the pretrained checkpoint that the next one starts from."""
    path = site.settings.home_path / "warm" / f"{champion.manifest.version}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = load_file(champion.path / WEIGHTS)
        save_file({k.removeprefix("backbone."): v for k, v in whole.items() if k.startswith("backbone.")}, path)
    own = Pretrained(source=str(path), sha256="")
    manifest = champion.manifest.model_copy(update={"pretrained": own, "strategy": "partial"})
    return replace(champion, manifest=manifest)


def _checked(site: Site) -> Check:
    with site.clock.of("checks"):
        return run_check(site.engine, site.settings)


def _retrained(site: Site, check: Check) -> Asked:
    with site.clock.of("training"):
        result = retrain(site.engine, site.settings, if_due=True)
    return Asked(str(check.verdict), f"{result.outcome}: {result.why}")


ARMS: Final[dict[str, Arm]] = {
    NEVER: never, EVERY: every_window, FIRES: drift_fires, WARM: warm, PERENNIAL: perennial,
}  # fmt: skip
