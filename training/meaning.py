"""Which classes no longer mean what they did (concept drift), and since when.

Old rows of such a class carry a label that is wrong now: to train on them teaches the old meaning, and to judge on
them rewards it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from scipy import stats

from perennial.bundle import ClassMetrics
from perennial.ledger import EventKind, events
from perennial.ledger.checks import CheckRow
from perennial.ledger.events import Event

OK: Final = "ok"
CONCEPT_DRIFT: Final = "concept_drift"
#: Less loss of precision than this is a worse model or noisy labels, not another meaning.
FLOOR: Final = 0.3
#: So much of the contradicting labels must agree on what the class is called now; labels given at random do not.
COHERENCE: Final = 2 / 3
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class ChangedClass:
    """What the champion calls `label` is called `now` today.

    `rows`: fresh rows that the champion calls so; `kept`: those of them still labelled so; `called_now`: those
    labelled `now`; `reference_precision`: the share expected, by the lower end of the champion's own interval;
    `recall` and `reference_recall`: the same seen from the rows labelled so (None without any); `p_value`: exact
    one-sided binomial, before Holm's correction.
    """

    label: str
    now: str
    rows: int
    kept: int
    called_now: int
    reference_precision: float
    recall: float | None
    reference_recall: float
    p_value: float


def changed_classes(
    answers: Sequence[tuple[str, str]], reference: Mapping[str, ClassMetrics], *, alpha: float
) -> tuple[ChangedClass, ...]:
    """Classes whose meaning changed, by the champion's answers on fresh rows whose *inputs* did not drift.

    The images that the champion calls c are those that the old rows of class c look like. If these are no longer
    labelled c, the old rows of c are labelled wrongly. (Seen from the other side, a low recall of c also happens to
    a class that was only joined by another: its old rows stay right.) A label that the champion does not know says of
    no other class that it changed: a class that arrived looks like one or another that was there.

    Args:
        answers: (predicted, true label) of each fresh row.
        reference: the champion's metrics on its own held-out rows.
        alpha: family-wise, over the classes (Holm, 1979).
    """
    labels_of: dict[str, list[str]] = defaultdict(list)
    predicted_of: dict[str, list[str]] = defaultdict(list)
    for predicted, label in answers:
        if label not in reference:
            continue
        labels_of[predicted].append(label)
        predicted_of[label].append(predicted)
    found = []
    for label in sorted(set(labels_of) & set(reference)):
        given = labels_of[label]
        kept = given.count(label)
        expected = reference[label].precision.low
        now, called_now = Counter(given).most_common(1)[0]
        mine = predicted_of.get(label, [])
        candidate = ChangedClass(
            label=label,
            now=now,
            rows=len(given),
            kept=kept,
            called_now=called_now,
            reference_precision=expected,
            recall=mine.count(label) / len(mine) if mine else None,
            reference_recall=reference[label].recall.value,
            p_value=float(stats.binom.cdf(kept, len(given), expected)),
        )
        found.append(candidate)
    return tuple(sorted((one for one in _holm(found, alpha) if _another_meaning(one)), key=lambda one: one.label))


def inputs_unchanged(request: Event | None, check: CheckRow | None) -> bool:
    """Does the monitor say that what comes in is as it was? Without a check nothing is known, and the answer is no."""
    if request is not None and request.detail.get("verdict") == CONCEPT_DRIFT:
        return True
    return check is not None and check.verdict in (OK, CONCEPT_DRIFT)


def changed_before(engine: sa.Engine, name: str, lineage: Sequence[str]) -> dict[str, datetime]:
    """Classes that changed their meaning on the way to a model, each with the moment that the change was last seen.

    Args:
        lineage: the model's version and those it descends from.
    """
    changed: dict[str, datetime] = {}
    last = 0
    while page := events.after(engine, name, last, kinds=[EventKind.GATE_PASSED, EventKind.GATE_REFUSED], limit=_PAGE):
        for event in page:
            if event.detail.get("version") in lineage:
                for entry in (event.detail.get("gate") or {}).get("changed_classes", []):
                    changed[entry["label"]] = event.at
        last = page[-1].id
    return changed


def _another_meaning(candidate: ChangedClass) -> bool:
    contradicting = candidate.rows - candidate.kept
    return (
        candidate.now != candidate.label
        and candidate.kept / candidate.rows < candidate.reference_precision - FLOOR
        and candidate.called_now >= COHERENCE * contradicting
    )


def _holm(candidates: Sequence[ChangedClass], alpha: float) -> list[ChangedClass]:
    significant = []
    for rank, candidate in enumerate(sorted(candidates, key=lambda one: one.p_value)):
        if candidate.p_value > alpha / (len(candidates) - rank):
            break
        significant.append(candidate)
    return significant
