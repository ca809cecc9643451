"""What the ledger knows of a challenger that goes live in stages, beside its champion.

Each image counts once for each model, at its first answer: one that is sent a thousand times proves no more than once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from perennial.ids import first_id
from perennial.ledger import events, predictions, rollouts, shadow_answers
from perennial.ledger.predictions import Answer
from perennial.ledger.rollouts import SHADOW, Rollout
from perennial.ledger.shadow_answers import Shadowed
from perennial.settings_sections import RetrainSettings

#: Answers of each model that are read of one stage at most, oldest first: far more than a stage needs.
_MOST: Final = 20_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a rollout is held to, fixed when it begins. `*_unsure_below`: ten points less than the confidence that three
    quarters of that model's own reference rows reach; `may_differ`: the share of images on which both may say different
    things. None where there was nothing to fix it by."""

    champion_unsure_below: float | None = None
    challenger_unsure_below: float | None = None
    may_differ: float | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """On how many images something was so, and on how many it was not."""

    yes: int = 0
    no: int = 0

    def add(self, outcomes: Iterable[bool]) -> Tally:
        found = list(outcomes)
        return Tally(self.yes + sum(found), self.no + len(found) - sum(found))


@dataclass(frozen=True, slots=True)
class RolloutEvidence:
    """All that is looked at.

    `answers` and `labelled` count this stage's images that the challenger answered, and its labelled comparisons;
    `seconds` is how long the stage has lasted. The rest is of all stages together. `worse`: labelled comparisons in
    which just one of the two was right, and it was the champion (yes) or not. `slower`: the challenger took longer than
    it may. `unsure`, `champion_unsure`: answers far less sure than three quarters of that model's reference rows.
    `differs`: the two say different things. `faults`: what went wrong when the challenger was to answer.
    """

    answers: int = 0
    labelled: int = 0
    seconds: float = 0.0
    worse: Tally = field(default_factory=Tally)
    slower: Tally = field(default_factory=Tally)
    unsure: Tally = field(default_factory=Tally)
    champion_unsure: Tally = field(default_factory=Tally)
    differs: Tally = field(default_factory=Tally)
    may_differ: float | None = None
    faults: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "faults": list(self.faults)}


def read(engine: sa.Engine, rollout: Rollout, settings: RetrainSettings, *, now: datetime) -> RolloutEvidence:
    """The evidence on a rollout, over the stages it came to.

    Raises:
        LedgerUnavailable.
    """
    [began] = events.by_id(engine, rollout.name, [rollout.started])
    stick = Yardstick(**began.detail.get("yardstick", {}))
    found = RolloutEvidence(may_differ=stick.may_differ)
    rows = rollouts.rows_of(engine, rollout.name, rollout.started)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.state != "running":
            continue
        until = first_id(following.at) if following is not None else None
        add = _shadow if row.current == SHADOW else _canary
        lasted = ((following.at if following is not None else now) - row.at).total_seconds()
        found = replace(found, answers=0, labelled=0, seconds=max(0.0, lasted))
        found = add(engine, row, first_id(row.at), until, stick, settings, found)
    return found


def _shadow(
    engine: sa.Engine,
    row: Rollout,
    first: str,
    until: str | None,
    stick: Yardstick,
    settings: RetrainSettings,
    found: RolloutEvidence,
) -> RolloutEvidence:
    """Both models answered the same images."""
    shown = shadow_answers.between(engine, row.challenger, first, until, limit=_MOST)
    answered = _once(shown)
    labelled = _once(shadow_answers.between(engine, row.challenger, first, until, limit=_MOST, labelled=True))
    right = [(one.answered == one.true_label, one.shadow.label == one.true_label) for one in labelled]
    return replace(
        found,
        answers=len(answered),
        labelled=len(labelled),
        worse=found.worse.add(champion for champion, challenger in right if champion != challenger),
        slower=found.slower.add(
            _is_slower(one.shadow.champion_ms or 0.0, one.shadow.latency_ms or 0.0, settings) for one in answered
        ),
        unsure=found.unsure.add(_below(stick.challenger_unsure_below, (one.shadow.confidence for one in answered))),
        champion_unsure=found.champion_unsure.add(
            _below(stick.champion_unsure_below, (one.confidence for one in answered))
        ),
        differs=found.differs.add(one.shadow.label != one.answered for one in answered),
        faults=found.faults + _faults(shown),
    )


def _canary(
    engine: sa.Engine,
    row: Rollout,
    first: str,
    until: str | None,
    stick: Yardstick,
    settings: RetrainSettings,
    found: RolloutEvidence,
) -> RolloutEvidence:
    """Each model answered other images; each of the challenger's is compared with one of the champion's next to it."""
    both = (row.champion, row.challenger)
    of = {
        version: _first_of(predictions.answers_between(engine, version, first, until, limit=_MOST)) for version in both
    }
    every = sorted((*of[row.champion], *of[row.challenger]), key=lambda one: one.id)
    labelled = _first_of(predictions.labelled_between(engine, both, first, until, limit=_MOST))
    pairs = list(paired((one.model_version == row.challenger, one) for one in labelled))
    right = [(one.label == one.true_label, other.label == other.true_label) for one, other in pairs]
    return replace(
        found,
        answers=len(of[row.challenger]),
        labelled=len(pairs),
        worse=found.worse.add(champion for champion, challenger in right if champion != challenger),
        slower=found.slower.add(
            _is_slower(one.latency_ms, other.latency_ms, settings)
            for one, other in paired((one.model_version == row.challenger, one) for one in every)
        ),
        unsure=found.unsure.add(_below(stick.challenger_unsure_below, (one.confidence for one in of[row.challenger]))),
        champion_unsure=found.champion_unsure.add(
            _below(stick.champion_unsure_below, (one.confidence for one in of[row.champion]))
        ),
        faults=found.faults + _faults(shadow_answers.between(engine, row.challenger, first, until, limit=_MOST)),
    )


def paired(rows: Iterable[tuple[bool, T]]) -> Iterator[tuple[T, T]]:
    """Pairs of (champion's, challenger's) rows that came near each other, each row once.

    More rows only add pairs, and which rows meet does not depend on what they say: so a test may be looked at again
    with each (`training.sequential`).

    Args:
        rows: in the order in which they came; whether it is the challenger's, and the row.
    """
    champion: list[T] = []
    challenger: list[T] = []
    for is_challenger, row in rows:
        if is_challenger and champion:
            yield champion.pop(), row
        elif is_challenger:
            challenger.append(row)
        elif challenger:
            yield row, challenger.pop(0)
        else:
            champion.append(row)


def _once(rows: Iterable[Shadowed]) -> list[Shadowed]:
    first: dict[str, Shadowed] = {}
    for row in rows:
        if row.shadow.fault is None:
            first.setdefault(row.image_digest, row)
    return list(first.values())


def _first_of(rows: Iterable[Answer]) -> list[Answer]:
    first: dict[tuple[str, str], Answer] = {}
    for row in rows:
        first.setdefault((row.model_version, row.image_digest), row)
    return list(first.values())


def _faults(rows: Iterable[Shadowed]) -> tuple[str, ...]:
    return tuple(row.shadow.fault for row in rows if row.shadow.fault is not None)


def _below(limit: float | None, confidences: Iterable[float | None]) -> list[bool]:
    return [] if limit is None else [one < limit for one in confidences if one is not None]


def _is_slower(champion: float, challenger: float, settings: RetrainSettings) -> bool:
    return challenger > max(settings.slowdown * champion, settings.quick)
