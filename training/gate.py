"""The gate: a challenger goes live only if it is measurably better than the champion.

Both models answer the same rows through the same graph runtime. `evaluate` collects the answers, `judge` decides on
them and nothing else, so a decision can be repeated from its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from perennial.bundle import Bundle, Estimate
from perennial.graph import Graph, GraphOutput
from perennial.images import ImageLimits
from perennial.progress import Progress, silent
from training.datasets import DEFAULT_LIMITS, Row
from training.evaluate import score
from training.meaning import ChangedClass
from training.paired import Comparison, PairedAnswers, compare, fewest_rows, smallest_p

Outcome = Literal["pass", "refuse", "wait"]

#: Probability of showing a real difference that "N more labels" is reckoned for.
POWER: Final = 0.8
#: A difference that would need more than this many times the rows at hand is not worth waiting for.
PATIENCE: Final = 4.0
_SHUFFLES: Final = 2000
_SUM_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the gate looks at. `fresh`: labelled captures of the live traffic; `old`: the champion's original
    held-out rows. Neither model was trained on any of them. `changed`: classes whose old rows no longer mean what
    they did, and are therefore not in `old`; `changed_before`: the same from earlier retrains. `faults`: what is wrong
    with the challenger's numbers as such."""

    fresh: PairedAnswers
    old: PairedAnswers
    faults: tuple[str, ...] = ()
    changed: tuple[ChangedClass, ...] = ()
    changed_before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of the gate, with its numbers in words."""

    name: str
    passed: bool
    why: str


@dataclass(frozen=True, slots=True)
class GateDecision:
    """`more_labels`: how many more labelled captures would probably settle it, where the outcome is `wait`."""

    outcome: Outcome
    why: str
    rules: tuple[Rule, ...]
    fresh: Comparison | None
    old: Comparison | None
    changed: tuple[ChangedClass, ...]
    more_labels: int | None = None

    def document(self) -> dict[str, Any]:
        """The decision with every number, as JSON."""
        return {
            "outcome": self.outcome,
            "why": self.why,
            "rules": [asdict(rule) for rule in self.rules],
            "fresh": self.fresh.document() if self.fresh else None,
            "old": self.old.document() if self.old else None,
            "changed_classes": [asdict(changed) for changed in self.changed],
            "more_labels": self.more_labels,
        }


def evaluate(
    champion: Bundle,
    challenger: Bundle,
    *,
    fresh: Sequence[Row],
    old: Sequence[Row],
    changed: Sequence[ChangedClass] = (),
    changed_before: Collection[str] = (),
    limits: ImageLimits = DEFAULT_LIMITS,
    threads: int = 0,
    progress: Progress = silent,
) -> Evidence:
    """Let both bundles answer the same rows through `perennial.graph.Graph`.

    Raises:
        InvalidBundle: a graph cannot be run.
        InvalidImage: a row cannot be decoded.
    """
    rows = [*fresh, *old]
    answers: list[tuple[str, ...]] = []
    faults: tuple[str, ...] = ()
    for bundle in (champion, challenger):
        if rows:
            output = score(Graph(bundle.graph, threads=threads), rows, bundle.manifest.input, limits, progress)
            best = output.probabilities.argmax(axis=1)
            answers.append(tuple(bundle.manifest.classes[index] for index in best))
        else:
            output = None
            answers.append(())
        if bundle is challenger:
            faults = _faults(challenger, output)
    cut = len(fresh)
    labels = tuple(row.label for row in rows)
    return Evidence(
        fresh=PairedAnswers(labels[:cut], answers[0][:cut], answers[1][:cut]),
        old=PairedAnswers(labels[cut:], answers[0][cut:], answers[1][cut:]),
        faults=faults,
        changed=tuple(changed),
        changed_before=tuple(sorted(changed_before)),
    )


def judge(evidence: Evidence, *, alpha: float, margin: float, share: float = 1.0) -> GateDecision:
    """Decide.

    The challenger passes if it is better on the fresh rows beyond chance (McNemar's exact test, one-sided, at
    `alpha`), loses no more than `margin` of accuracy on the old held-out rows, and its numbers are sound. Where it
    looks better but the rows are too few to tell, the outcome is `wait`.

    Args:
        share: the share of further labels that will reach the fresh slice; turns rows into labels to wait for.
    """
    fresh = compare(evidence.fresh) if len(evidence.fresh) else None
    old = compare(evidence.old) if len(evidence.old) else None
    rules = [_sound(evidence), _better_on_fresh(fresh, alpha), _kept_on_old(evidence, old, margin)]
    if evidence.changed or evidence.changed_before:
        rules.append(_informed(evidence.fresh, alpha))
    broken = [rule for rule in rules if not rule.passed]
    outcome: Outcome = "refuse" if broken else "pass"
    more = None
    if [rule.name for rule in broken] == ["better_on_fresh"]:
        needed = _rows_to_decide(fresh, alpha)
        have = fresh.rows if fresh else 0
        if needed is not None:
            outcome = "wait"
            more = max(1, math.ceil((needed - have) / max(share, 0.01)))
    why = "; ".join(rule.why for rule in (broken or rules))
    if more is not None:
        why += f"; about {more} more labels would settle it"
    return GateDecision(outcome, why, tuple(rules), fresh, old, evidence.changed, more)


def _sound(evidence: Evidence) -> Rule:
    if evidence.faults:
        return Rule("sound", False, "the challenger's numbers are not sound: " + "; ".join(evidence.faults))
    return Rule("sound", True, "the challenger's outputs and reference rows are finite and its probabilities sum to 1")


def _better_on_fresh(fresh: Comparison | None, alpha: float) -> Rule:
    name = "better_on_fresh"
    if fresh is None:
        return Rule(name, False, "there are no fresh labelled rows to judge on")
    numbers = (
        f"on {fresh.rows} fresh rows the challenger has {_percent(fresh.challenger)}, the champion "
        f"{_percent(fresh.champion)} (difference {_points(fresh.difference)}, p = {fresh.p_value:.3g})"
    )
    if smallest_p(fresh.rows) > alpha:
        return Rule(
            name,
            False,
            f"{numbers}: {fresh.rows} rows cannot reach p <= {alpha:g}, the smallest possible is "
            f"{smallest_p(fresh.rows):.3g}",
        )
    if fresh.difference.value > 0 and fresh.p_value <= alpha:
        return Rule(name, True, numbers)
    return Rule(name, False, f"{numbers}: not better beyond chance (p <= {alpha:g})")


def _kept_on_old(evidence: Evidence, old: Comparison | None, margin: float) -> Rule:
    name = "kept_on_old"
    left_out = ""
    gone = sorted({*(changed.label for changed in evidence.changed), *evidence.changed_before})
    if gone:
        left_out = f" (without {', '.join(gone)}, whose meaning changed)"
    if old is None:
        if gone:
            return Rule(name, True, f"no old held-out rows are left to judge on{left_out}")
        return Rule(name, False, "there are no original held-out rows to judge on, so nothing shows what was forgotten")
    numbers = (
        f"on {old.rows} old held-out rows{left_out} the challenger has {_percent(old.challenger)}, the champion "
        f"{_percent(old.champion)} (difference {_points(old.difference)})"
    )
    if old.difference.value >= -margin - 1e-9:
        return Rule(name, True, numbers)
    return Rule(name, False, f"{numbers}: more than the {margin * 100:g} points it may lose")


def _informed(fresh: PairedAnswers, alpha: float) -> Rule:
    """Do the challenger's answers follow the labels more than its class mix alone would (a permutation test)?

    With classes left out of the old rows, a model that had learnt noise, or only the commonest label, could
    otherwise look better than a champion that knows the old meanings.
    """
    codes = {name: code for code, name in enumerate(sorted({*fresh.labels, *fresh.challenger}))}
    truth = np.array([codes[label] for label in fresh.labels], dtype=np.int64)
    answer = np.array([codes[label] for label in fresh.challenger], dtype=np.int64)
    agreed = int((truth == answer).sum())
    generator = np.random.default_rng(0)
    by_chance = np.array([(generator.permutation(truth) == answer).sum() for _ in range(_SHUFFLES)])
    p_value = (1 + int((by_chance >= agreed).sum())) / (1 + _SHUFFLES)
    numbers = (
        f"on {len(fresh)} fresh rows the challenger's answers agree with the labels {agreed} times, "
        f"{by_chance.mean():.1f} times with the labels shuffled (p = {p_value:.3g})"
    )
    passed = p_value <= alpha
    return Rule("informed", passed, numbers if passed else f"{numbers}: it has not learnt what the labels mean")


def _rows_to_decide(fresh: Comparison | None, alpha: float) -> int | None:
    """Rows at which a difference of the size seen would be shown with probability `POWER` (Connor, 1987); None if
    the challenger does not look better, or the answer is too far off to wait for."""
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
    return needed if needed <= max(PATIENCE * fresh.rows, floor) else None


def _faults(challenger: Bundle, output: GraphOutput | None) -> tuple[str, ...]:
    faults = []
    if output is not None:
        for name in ("probabilities", "embedding", "properties"):
            if not np.isfinite(getattr(output, name)).all():
                faults.append(f"the graph's {name} are not finite on every row")
        worst = float(np.abs(output.probabilities.sum(axis=1) - 1.0).max())
        if worst > _SUM_TOLERANCE:
            faults.append(f"the graph's probabilities sum to 1 only within {worst:.3g}")
    columns = ["confidence", "probabilities", "embedding", "properties"]
    table = pq.read_table(challenger.reference, columns=columns)
    if table.num_rows == 0:
        faults.append("the bundle has no reference rows")
    for name in columns:
        column = table.column(name).combine_chunks()
        values = column.flatten() if name != "confidence" else column
        if values.null_count or not np.isfinite(values.to_numpy(zero_copy_only=False)).all():
            faults.append(f"the reference rows' {name} are not all finite")
    return tuple(faults)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value * 100:+.1f} points [{estimate.low * 100:+.1f}, {estimate.high * 100:+.1f}]"
