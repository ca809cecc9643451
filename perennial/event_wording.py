"""Events in words, for the terminal, a model's page and webhooks: what happened, and why. One line each, bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from perennial.ledger.events import Event, EventKind

_LONGEST: Final = 400  # characters of each of the two parts

Detail = Mapping[str, Any]


def what(event: Event) -> str:
    """Of which model, against or in place of which other."""
    return _line((_WHAT.get(event.kind) or _about)(event.detail))


def why(event: Event) -> str:
    """The reason that was given, or that was found; empty where there is none."""
    detail = event.detail
    if event.kind is EventKind.RETRAIN_FAILED and detail.get("error"):
        return _line(f"{detail['error']}: {detail.get('reason', '')}")
    return _line(str(detail.get("why") or detail.get("reason") or _causes(detail)))


def sentence(event: Event) -> str:
    """All of it: `bees: gate refused, 20260301-... against 20260211-...: not better beyond chance`."""
    told = f"{event.name}: {title(event.kind)}, {what(event)}".rstrip(", ")
    return f"{told}: {why(event)}" if why(event) else told


def title(kind: str) -> str:
    """`drift_opened` as people write it."""
    return str(kind).replace("_", " ")


def stage_title(stage: Any) -> str:
    """A stage of a rollout as people say it: `shadow`, `10 % of the traffic`."""
    return f"{100 * stage:g} % of the traffic" if isinstance(stage, int | float) else str(stage)


def _check_changed(detail: Detail) -> str:
    before = _spoken(detail.get("from")) or "no check"
    return f"{before} to {_spoken(detail.get('to'))} on {detail.get('model_version')}"


def _drift_opened(detail: Detail) -> str:
    return f"{_spoken(detail.get('verdict'))} on {detail.get('model_version')}"


def _drift_closed(detail: Detail) -> str:
    began = detail.get("opened_on")
    moved = f", which began on {began}" if began and began != detail.get("model_version") else ""
    return f"{_spoken(detail.get('verdict'))} on {detail.get('model_version')}{moved}"


def _retrain_requested(detail: Detail) -> str:
    return f"of {detail.get('model_version')}"


def _retrain_started(detail: Detail) -> str:
    labels = detail.get("labels")
    with_labels = f", with {labels} fresh labels" if labels is not None else ""
    return f"to replace {detail.get('champion')}{with_labels}{_new_classes(detail)}"


def _retrain_failed(detail: Detail) -> str:
    return f"{detail.get('champion')} stays live"


def _gate(detail: Detail) -> str:
    return f"{detail.get('version')} against {detail.get('champion')}{_new_classes(detail)}"


def _new_classes(detail: Detail) -> str:
    new = detail.get("new_classes") or {}
    return f", new: {', '.join(f'{label} ({count} labels)' for label, count in new.items())}" if new else ""


def _rollout(detail: Detail) -> str:
    return f"{detail.get('version')} beside {detail.get('champion')}: {stage_title(detail.get('stage', 'shadow'))}"


def _rollout_stopped(detail: Detail) -> str:
    return f"{detail.get('version')} at {stage_title(detail.get('stage', 'shadow'))}, {detail.get('champion')} goes on"


def _deployed(detail: Detail) -> str:
    instead = f" in place of {detail['replaces']}" if detail.get("replaces") else ""
    forced = ", forced" if detail.get("forced") and detail.get("replaces") else ""
    return f"{detail.get('version')}{instead} (by {detail.get('actor') or 'somebody'}{forced})"


def _watch_passed(detail: Detail) -> str:
    return f"{detail.get('version')} against {detail.get('before')}, which it replaced"


def _swap_failed(detail: Detail) -> str:
    keeps = detail.get("keeps")
    return f"{detail.get('version')} cannot be served, {f'{keeps} goes on' if keeps else 'no model is served'}"


def _about(detail: Detail) -> str:
    """An event that this module has no words for."""
    return str(detail.get("version") or detail.get("model_version") or detail.get("champion") or "")


_WHAT: Final[Mapping[EventKind, Callable[[Detail], str]]] = {
    EventKind.CHECK_CHANGED: _check_changed,
    EventKind.DRIFT_OPENED: _drift_opened,
    EventKind.DRIFT_CLOSED: _drift_closed,
    EventKind.RETRAIN_REQUESTED: _retrain_requested,
    EventKind.RETRAIN_STARTED: _retrain_started,
    EventKind.RETRAIN_FAILED: _retrain_failed,
    EventKind.GATE_PASSED: _gate,
    EventKind.GATE_REFUSED: _gate,
    EventKind.ROLLOUT_STARTED: _rollout,
    EventKind.ROLLOUT_ADVANCED: _rollout,
    EventKind.ROLLOUT_STOPPED: _rollout_stopped,
    EventKind.DEPLOYED: _deployed,
    EventKind.ROLLED_BACK: _deployed,
    EventKind.WATCH_PASSED: _watch_passed,
    EventKind.SWAP_FAILED: _swap_failed,
}


def _spoken(verdict: Any) -> str:
    """A verdict or a cause, such as `sensor_shift`, as people write it; a sentence stays as it is."""
    said = str(verdict or "")
    return said if " " in said else title(said)


def _causes(detail: Detail) -> str:
    return "; ".join(
        str(cause.get("why") or _spoken(cause.get("cause"))) if isinstance(cause, Mapping) else _spoken(cause)
        for cause in detail.get("causes") or ()
    )


def _line(text: str) -> str:
    """Without line ends and other signs that a terminal or a log would obey."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[: 2 * _LONGEST]).strip()
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
