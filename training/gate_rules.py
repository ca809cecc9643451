"""The rules of the gate, each with its numbers in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perennial.bundle import Estimate
from perennial.settings_sections import RetrainSettings
from training.paired import Comparison, PairedAnswers, mcnemar, smallest_p
from training.rule import Rule

#: Why a fresh row does not count.
UNFAIR: Final = "labelled for the champion being unsure of them"
_SHUFFLES: Final = 2000
_DRAWS: Final = 500
_BINS: Final = 15  # as `evaluate.calibration`


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a challenger must keep to.

    `alpha`: level of every test. `margin`: accuracy that it may lose on the old held-out rows; `class_margin`: recall
    that it may lose of any class; `calibration_margin`: calibration error that it may add; `slowdown` and `growth`:
    how many times the champion's milliseconds an image and bytes it may take, unless it takes no more than `quick`
    milliseconds and `small` megabytes. `share` of further labels will reach the fresh slice: turns rows into labels to
    wait for.
    """

    alpha: float
    margin: float
    class_margin: float = 0.1
    calibration_margin: float = 0.05
    slowdown: float = 1.5
    quick: float = 20.0
    growth: float = 2.0
    small: float = 50.0
    share: float = 1.0


def gate_limits(settings: RetrainSettings, *, share: float = 1.0) -> GateLimits:
    """The limits as they are set."""
    return GateLimits(
        settings.alpha,
        settings.margin,
        settings.class_margin,
        settings.calibration_margin,
        settings.slowdown,
        settings.quick,
        settings.growth,
        settings.small,
        share,
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds an image, one at a time and in turn, and bytes of the graph."""

    champion_milliseconds: float
    challenger_milliseconds: float
    champion_bytes: int
    challenger_bytes: int


@dataclass(frozen=True, slots=True)
class Recall:
    """One class on all rows that both answered: how many of its `rows` each model has right, and the one-sided exact
    McNemar p of the challenger being no worse, before Holm's correction."""

    rows: int
    champion: int
    challenger: int
    p_value: float

    @property
    def lost(self) -> float:
        return (self.champion - self.challenger) / self.rows


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected calibration error on the fresh rows (15 equal bins; Guo et al., 2017), and how much more the challenger
    has, with a paired bootstrap interval."""

    champion: float
    challenger: float
    difference: Estimate


def sound(faults: Collection[str]) -> Rule:
    """Are its numbers numbers?"""
    if faults:
        return Rule("sound", False, "the challenger's numbers are not sound: " + "; ".join(faults))
    return Rule("sound", True, "the challenger's outputs and reference rows are finite and its probabilities sum to 1")


def better_on_fresh(fresh: Comparison | None, alpha: float, unfair: int = 0) -> Rule:
    """Is it better beyond chance on what comes in now? So many `unfair` rows do not count."""
    name = "better_on_fresh"
    if fresh is None:
        none = "there are no fresh labelled rows to judge on"
        return Rule(name, False, f"{none}: {unfair} do not count, as they were {UNFAIR}" if unfair else none)
    numbers = (
        f"on {fresh.rows} fresh rows the challenger has {_percent(fresh.challenger)}, the champion "
        f"{_percent(fresh.champion)} (difference {_points(fresh.difference)}, p = {fresh.p_value:.3g})"
    )
    if unfair:
        numbers += f", without {unfair} that do not count, as they were {UNFAIR}"
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


def kept_on_old(old: Comparison | None, gone: Collection[str], margin: float) -> Rule:
    """Does it still know what the champion was held out on? `gone` are classes that are not among those rows."""
    name = "kept_on_old"
    left_out = f" (without {', '.join(sorted(gone))}, whose meaning changed)" if gone else ""
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


def informed(fresh: PairedAnswers, alpha: float) -> Rule:
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


def recalls(fresh: PairedAnswers, old: PairedAnswers) -> dict[str, Recall]:
    """Each class on both slices together."""
    truth = np.array([*fresh.labels, *old.labels])
    champion = np.array([*fresh.champion, *old.champion]) == truth
    challenger = np.array([*fresh.challenger, *old.challenger]) == truth
    found = {}
    for label in sorted(set(truth.tolist())):
        rows = truth == label
        lost, won = int((rows & champion & ~challenger).sum()), int((rows & ~champion & challenger).sum())
        found[label] = Recall(
            int(rows.sum()), int((rows & champion).sum()), int((rows & challenger).sum()), mcnemar(won, lost)
        )
    return found


def kept_each_class(found: Mapping[str, Recall], alpha: float, margin: float) -> Rule:
    """Does it know every class as well as the champion? A class of few rows loses much by one answer, so the loss must
    be beyond chance too (Holm, 1979, over the classes)."""
    name = "kept_each_class"
    broken = []
    for rank, (label, recall) in enumerate(sorted(found.items(), key=lambda each: each[1].p_value)):
        if recall.p_value > alpha / (len(found) - rank):
            break
        if recall.lost > margin + 1e-9:
            broken.append((label, recall))
    if broken:
        told = "; ".join(
            f"of {recall.rows} images of {label} the champion knows {recall.champion}, the challenger "
            f"{recall.challenger} (p = {recall.p_value:.3g})"
            for label, recall in broken
        )
        return Rule(name, False, f"{told}: more than the {margin * 100:g} points of recall that a class may lose")
    if not found:
        return Rule(name, True, "there is no class to compare")
    label, worst = max(found.items(), key=lambda each: each[1].lost)
    most = (
        f"the most is {label}: {worst.champion} to {worst.challenger} of {worst.rows}"
        if worst.lost > 0
        else "none does"
    )
    return Rule(name, True, f"no class loses more than {margin * 100:g} points of recall beyond chance ({most})")


def calibration_of(fresh: PairedAnswers, seed: int = 0) -> Calibration | None:
    """How far each model's confidence is from its accuracy; None where confidences are not known."""
    if not len(fresh) or not fresh.champion_confidence or not fresh.challenger_confidence:
        return None
    members = [
        _by_bin(np.array(confidence), np.array(answers) == np.array(fresh.labels))
        for confidence, answers in (
            (fresh.champion_confidence, fresh.champion),
            (fresh.challenger_confidence, fresh.challenger),
        )
    ]
    rows = len(fresh)
    champion, challenger = (float(np.abs(member.sum(axis=0)).sum() / rows) for member in members)
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), _DRAWS)
    before, after = (np.abs(drawn @ member).sum(axis=1) / rows for member in members)
    value = challenger - champion
    # The basic bootstrap: a resample is calibrated worse than the rows it is of, and the better model suffers more.
    low, high = 2 * value - np.percentile(after - before, (97.5, 2.5))
    return Calibration(
        champion, challenger, Estimate(value=value, low=min(value, float(low)), high=max(value, float(high)))
    )


def _by_bin(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, bins], what each row adds to the gap of its bin."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return np.asarray(np.eye(_BINS)[bins] * (right - confidence)[:, None])


def calibrated(found: Calibration | None, margin: float) -> Rule:
    """May its probabilities be trusted as far as the champion's?"""
    name = "calibrated"
    if found is None:
        return Rule(name, True, "there are no confidences to compare")
    numbers = (
        f"on the fresh rows its expected calibration error is {found.challenger:.3f}, the champion's "
        f"{found.champion:.3f} (difference {found.difference.value:+.3f} "
        f"[{found.difference.low:+.3f}, {found.difference.high:+.3f}])"
    )
    if found.difference.value > margin and found.difference.low > 0:
        return Rule(name, False, f"{numbers}: more than the {margin:g} that it may add")
    return Rule(name, True, numbers)


def affordable(costs: Costs | None, limits: GateLimits) -> list[Rule]:
    """Is it as quick and as small as it has to be?"""
    if costs is None:
        return []
    before, now = costs.champion_milliseconds, costs.challenger_milliseconds
    time = f"the challenger takes {now:.2f} ms an image, the champion {before:.2f}"
    quick = now <= max(limits.slowdown * before, limits.quick)
    had, has = costs.champion_bytes / 1e6, costs.challenger_bytes / 1e6
    size = f"the challenger's graph has {has:.1f} MB, the champion's {had:.1f}"
    small = has <= max(limits.growth * had, limits.small)
    too_slow = f"{time}: more than {limits.slowdown:g} times as long, and more than {limits.quick:g} ms"
    too_large = f"{size}: more than {limits.growth:g} times as much, and more than {limits.small:g} MB"
    return [
        Rule("quick_enough", quick, time if quick else too_slow),
        Rule("small_enough", small, size if small else too_large),
    ]


def document_of(found: Mapping[str, Recall]) -> dict[str, dict[str, Any]]:
    """The classes as JSON."""
    return {
        label: {
            "rows": recall.rows, "champion": recall.champion, "challenger": recall.challenger,
            "p_value": recall.p_value,
        }
        for label, recall in found.items()
    }  # fmt: skip


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value * 100:+.1f} points [{estimate.low * 100:+.1f}, {estimate.high * 100:+.1f}]"
