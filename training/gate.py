"""The gate: a challenger goes live only if it is measurably better than the champion.

Both models answer the same rows through the same graph runtime. `evaluate` collects the answers, `judge` decides on
them and nothing else, so a decision can be repeated from its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from perennial.bundle import GRAPH, Bundle
from perennial.graph import Graph
from perennial.images import ImageLimits
from perennial.progress import Progress, silent
from training.answers import Answers, answers
from training.certify import measure_speeds
from training.datasets import DEFAULT_LIMITS, Row
from training.fair_rows import Labelling, fair_rows
from training.gate_rules import (
    UNFAIR,
    Calibration,
    Costs,
    GateLimits,
    Recall,
    affordable,
    better_on_fresh,
    calibrated,
    calibration_of,
    document_of,
    informed,
    kept_each_class,
    kept_on_old,
    recalls,
    sound,
)
from training.meaning import ChangedClass
from training.paired import Comparison, PairedAnswers, compare, fewest_rows
from training.rule import Rule
from training.soundness import faults_of, opened

Outcome = Literal["pass", "refuse", "wait"]

#: Probability of showing a real difference that "N more labels" is reckoned for.
POWER: Final = 0.8
#: A difference that would need more than this many times the rows at hand is not worth waiting for.
PATIENCE: Final = 4.0
#: Each model is timed so long; and so long again where the challenger looks slower by more than this factor, for a
#: machine that is busy besides must not make it look slow.
_GLANCE_SECONDS: Final = 0.1
_TIMED_SECONDS: Final = 0.5
_SLOWER: Final = 1.05


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the gate looks at. `fresh`: labelled captures of the live traffic; `old`: the champion's original
    held-out rows. Neither model was trained on any of them. `changed`: classes whose old rows no longer mean what
    they did, and are therefore not in `old`; `changed_before`: the same from earlier retrains. `faults`: what is wrong
    with the challenger's numbers as such; `costs`: what an answer takes, None where it was not measured. `unfair`: how
    many fresh rows were left out, as they were labelled for the champion being unsure of them (`training.fair_rows`).
    """

    fresh: PairedAnswers
    old: PairedAnswers
    faults: tuple[str, ...] = ()
    changed: tuple[ChangedClass, ...] = ()
    changed_before: tuple[str, ...] = ()
    costs: Costs | None = None
    unfair: int = 0


@dataclass(frozen=True, slots=True)
class GateDecision:
    """`more_labels`: how many more labelled captures would probably settle it, where the outcome is `wait`, if they are
    chosen as those at hand were; `more_random_labels`: how many, if they are chosen at random. `left_out`: how many
    fresh rows do not count, by reason."""

    outcome: Outcome
    why: str
    rules: tuple[Rule, ...]
    fresh: Comparison | None
    old: Comparison | None
    changed: tuple[ChangedClass, ...]
    classes: Mapping[str, Recall]
    calibration: Calibration | None
    costs: Costs | None
    more_labels: int | None = None
    more_random_labels: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The decision with every number, as JSON."""
        return {
            "outcome": self.outcome,
            "why": self.why,
            "rules": [asdict(rule) for rule in self.rules],
            "fresh": self.fresh.document() if self.fresh else None,
            "old": self.old.document() if self.old else None,
            "changed_classes": [asdict(changed) for changed in self.changed],
            "classes": document_of(self.classes),
            "calibration": _calibration(self.calibration),
            "costs": asdict(self.costs) if self.costs else None,
            "more_labels": self.more_labels,
            "more_random_labels": self.more_random_labels,
            "left_out": dict(self.left_out),
        }


def evaluate(
    champion: Bundle,
    challenger: Bundle,
    *,
    fresh: Sequence[Row],
    old: Sequence[Row],
    changed: Sequence[ChangedClass] = (),
    changed_before: Collection[str] = (),
    labelling: Labelling | None = None,
    known: Mapping[str, Answers] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    threads: int = 0,
    progress: Progress = silent,
) -> Evidence:
    """Let both bundles answer the same rows through `perennial.graph.Graph`.

    Args:
        known: what `champion` and `challenger` have answered already, which a sample must confirm
            (`training.answers`); without it both are asked everything.
        labelling: what of the champion's answers was labelled, to leave out fresh rows that would favour the
            challenger; without it all count.

    Raises:
        InvalidBundle: a graph cannot be run, or does not do what its manifest says.
        InvalidImage: a row cannot be decoded.
    """
    rows = [*fresh, *old]
    said: list[tuple[str, ...]] = []
    sure: list[tuple[float, ...]] = []
    faults: tuple[str, ...] = ()
    # The champion's is checked whenever a service loads it.
    graphs = {"champion": Graph(champion.graph, threads=threads), "challenger": opened(challenger, threads=threads)}
    rules = {"champion": champion.manifest.input, "challenger": challenger.manifest.input}
    outputs = answers(graphs, rules, rows, known or {}, limits, progress, threads=threads) if rows else {}
    for name, bundle in (("champion", champion), ("challenger", challenger)):
        output = outputs.get(name)
        probabilities = output.probabilities if output is not None else np.empty((0, len(bundle.manifest.classes)))
        said.append(tuple(bundle.manifest.classes[index] for index in probabilities.argmax(axis=1)))
        sure.append(tuple(probabilities.max(axis=1, initial=0.0).tolist()))
        if bundle is challenger:
            faults = faults_of(challenger, rows, output)
    labels = tuple(row.label for row in rows)
    answered = PairedAnswers(labels, said[0], said[1], sure[0], sure[1])
    cut = len(fresh)
    counts = np.ones(cut, np.bool_)
    if labelling is not None:
        counts = fair_rows(champion.manifest, fresh, (sure[0][:cut], sure[1][:cut]), labelling)
    return Evidence(
        fresh=answered.of(np.flatnonzero(counts)),
        old=answered.of(range(cut, len(rows))),
        unfair=int((~counts).sum()),
        faults=faults,
        changed=tuple(changed),
        changed_before=tuple(sorted(changed_before)),
        costs=_costs(graphs, champion, challenger),
    )


def judge(evidence: Evidence, limits: GateLimits) -> GateDecision:
    """Decide.

    The challenger passes if it is better on the fresh rows beyond chance (McNemar's exact test, one-sided), loses no
    more than the margins on the old held-out rows and of any class, is as well calibrated, as quick and as small as
    it has to be, and its numbers are sound. Where only the first is missing, it looks better and the rows are too few
    to tell, the outcome is `wait`.
    """
    fresh = compare(evidence.fresh) if len(evidence.fresh) else None
    old = compare(evidence.old) if len(evidence.old) else None
    gone = {*(changed.label for changed in evidence.changed), *evidence.changed_before}
    classes, calibration = recalls(evidence.fresh, evidence.old), calibration_of(evidence.fresh)
    rules = [
        sound(evidence.faults),
        better_on_fresh(fresh, limits.alpha, evidence.unfair),
        kept_on_old(old, gone, limits.margin),
        kept_each_class(classes, limits.alpha, limits.class_margin),
        calibrated(calibration, limits.calibration_margin),
        *affordable(evidence.costs, limits),
    ]
    if gone:
        rules.append(informed(evidence.fresh, limits.alpha))
    broken = [rule for rule in rules if not rule.passed]
    outcome: Outcome = "refuse" if broken else "pass"
    more = at_random = None
    if [rule.name for rule in broken] == ["better_on_fresh"]:
        have = fresh.rows if fresh else 0
        needed = _rows_to_decide(fresh, limits.alpha, have + evidence.unfair)
        if needed is not None:
            outcome = "wait"
            at_random = max(1, math.ceil((needed - have) / max(limits.share, 0.01)))
            # Of none that counts nothing shows how many would: one is the most that can be hoped for.
            more = math.ceil(at_random * (have + evidence.unfair) / max(1, have)) if evidence.unfair else at_random
    why = "; ".join(rule.why for rule in (broken or rules))
    if more is not None:
        why += f"; about {more} more labels would settle it"
        if evidence.unfair:
            drawn = f"{at_random} chosen at random (perennial labels queue --random 1)"
            why += f" if they are chosen as these were, or about {drawn}"
    return GateDecision(
        outcome,
        why,
        tuple(rules),
        fresh,
        old,
        evidence.changed,
        classes,
        calibration,
        evidence.costs,
        more,
        at_random,
        {UNFAIR: evidence.unfair} if evidence.unfair else {},
    )


def _rows_to_decide(fresh: Comparison | None, alpha: float, at_hand: int) -> int | None:
    """Rows at which a difference of the size seen would be shown with probability `POWER` (Connor, 1987); None if
    the challenger does not look better, or the answer is too far off to wait for with so many rows at hand, be they
    fair or not."""
    floor = fewest_rows(alpha)
    if fresh is None:
        return floor
    if fresh.difference.value <= 0:
        return floor if fresh.rows < floor and fresh.difference.value == 0 else None
    difference = fresh.difference.value
    discordant = (fresh.only_champion + fresh.only_challenger) / fresh.rows
    z_alpha, z_power = stats.norm.isf(alpha), stats.norm.isf(1 - POWER)
    spread = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(0.0, discordant - difference**2))
    needed = max(math.ceil((spread / difference) ** 2), fresh.rows + 1, floor)
    return needed if needed <= max(PATIENCE * at_hand, floor) else None


def _costs(graphs: Mapping[str, Graph], champion: Bundle, challenger: Bundle) -> Costs:
    speeds = measure_speeds(graphs, _GLANCE_SECONDS)
    if speeds["champion"] > _SLOWER * speeds["challenger"]:
        speeds = measure_speeds(graphs, _TIMED_SECONDS)
    return Costs(
        round(1000 / speeds["champion"], 3),
        round(1000 / speeds["challenger"], 3),
        champion.manifest.files[GRAPH].bytes,
        challenger.manifest.files[GRAPH].bytes,
    )


def _calibration(found: Calibration | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**asdict(found), "difference": found.difference.model_dump()}
