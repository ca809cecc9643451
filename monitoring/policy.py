"""When to retrain: drift is not a reason, lost accuracy is. One pure function."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.accuracy import Accuracy
from monitoring.error_stream import Rise
from monitoring.verdict import CALM, Verdict
from perennial.settings_sections import RetrainSettings


@dataclass(frozen=True, slots=True)
class RetrainDecision:
    due: bool
    why: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What the decision rests on.

    `labelled` is None where there are fewer labels than `monitor.min_labels`; `loss_p_value` is the one-sided test that
    the labelled accuracy is below the reference's, `alpha` what counts as beyond chance in every window. `captures` is
    how many labelled images are at hand to train on; `seconds_since_retrain`, or since a rollback, is None where there
    was none. `withheld` says why there is no estimate; `errors_rose` that the version's labelled answers, over all
    windows, are under a rise of errors.
    """

    verdict: Verdict
    reference: Accuracy | None
    labelled: Accuracy | None
    estimated: Accuracy | None
    withheld: str | None
    loss_p_value: float
    alpha: float
    captures: int
    seconds_since_retrain: float | None
    errors_rose: Rise | None = None


def is_lost(situation: Situation, settings: RetrainSettings) -> bool:
    """Is accuracy by labels lower than it was, by enough and not by chance? Only then do captures matter.

    Than the reference's, or than the version's own labelled answers before: a reference of a few dozen held-out rows
    can show little, where hundreds of labels have shown how good the model was.

    Every window is asked, so that by labels alone a loss has to be most unlikely to be chance. Where drift was found,
    it was hardly chance, and what is left to tell is whether it costs anything: `retrain.alpha` will do, as for the
    gate that judges afterwards.
    """
    reference, labelled = situation.reference, situation.labelled
    if reference is None or labelled is None:
        return False
    dropped = reference.value - labelled.value >= settings.accuracy_drop
    alpha = situation.alpha if situation.verdict in CALM else max(situation.alpha, settings.alpha)
    return (dropped and situation.loss_p_value <= alpha) or _rose(situation, settings)


def _rose(situation: Situation, settings: RetrainSettings) -> bool:
    """Do the version's own answers err more than they did, and does the window say so too?"""
    rise, labelled = situation.errors_rose, situation.labelled
    if rise is None or labelled is None:
        return False
    return min(rise.after, 1.0 - labelled.value) - rise.before >= settings.accuracy_drop


def decide(situation: Situation, settings: RetrainSettings) -> RetrainDecision:
    """Is a retrain called for, and why (not)?"""
    reference, labelled = situation.reference, situation.labelled
    if situation.verdict is Verdict.COLLECTION_FAULT:
        return RetrainDecision(False, "the images do not come in as they should; mend that first")
    if reference is None:
        return RetrainDecision(False, "the model has no held-out reference rows to compare its accuracy with")
    if labelled is None:
        return _without_labels(situation, reference, settings)

    change = f"accuracy {reference.value:.3f} -> {labelled.value:.3f} on {labelled.rows} labels"
    rise = situation.errors_rose
    if rise is not None and _rose(situation, settings):
        change += f", errors {rise.before:.1%} -> {rise.after:.1%} of the labelled answers"
    if not is_lost(situation, settings):
        small = reference.value - labelled.value < settings.accuracy_drop
        chance = "less than retrain.accuracy_drop" if small else "could be chance"
        if situation.verdict in CALM:
            return RetrainDecision(False, f"{change}: {chance}")
        return RetrainDecision(False, f"{_cause(situation.verdict)}, but the model still copes: {change} ({chance})")
    if situation.captures < settings.min_labels:
        missing = settings.min_labels - situation.captures
        return RetrainDecision(
            False,
            f"{change}, but only {situation.captures} labelled images are at hand: label {missing} more "
            "(retrain.min_labels)",
        )
    if not settings.on_drift:
        return RetrainDecision(False, f"{change}, but retrain.on_drift is off: perennial retrain does it by hand")
    waited = situation.seconds_since_retrain
    # Two clocks may differ a little; a retrain that lies further ahead was dated by one that was wrong since.
    if waited is not None and -settings.cooldown < waited < settings.cooldown:
        waited = max(0.0, waited)
        return RetrainDecision(
            False,
            f"{change}, but the last retrain or rollback was {waited:.0f} s ago: "
            f"wait {settings.cooldown - waited:.0f} s more (perennial retrain, by hand, does not wait)",
        )
    return RetrainDecision(True, f"{change}; {situation.captures} labelled images are at hand")


def _without_labels(situation: Situation, reference: Accuracy, settings: RetrainSettings) -> RetrainDecision:
    estimate = situation.estimated
    # The whole interval has to lie below: an estimate asks people for work, and must be worth it.
    if estimate is not None and reference.value - estimate.high >= settings.accuracy_drop:
        return RetrainDecision(
            False,
            f"the estimated accuracy fell to {estimate.value:.3f} from {reference.value:.3f}: "
            f"label {settings.min_labels} of the images to know, and to retrain on",
        )
    if situation.verdict in CALM:
        return RetrainDecision(False, "nothing says that accuracy was lost")
    if estimate is None:
        why = f" ({situation.withheld})" if situation.withheld else ""
        return RetrainDecision(
            False,
            f"{_cause(situation.verdict)}, and what it costs cannot be estimated{why}: label {settings.min_labels} of "
            "the images to know, and to retrain on",
        )
    return RetrainDecision(
        False,
        f"{_cause(situation.verdict)}, but the estimated accuracy holds ({estimate.value:.3f}): "
        "label some images to be sure",
    )


def _cause(verdict: Verdict) -> str:
    return f"there is a {verdict.value.replace('_', ' ')}"
