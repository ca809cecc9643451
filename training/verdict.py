"""The manifest's evidence in a sentence or two: how good is the model, and is it worth its price?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from perennial.bundle import Estimate, Ladder, Manifest, Rung

MAJORITY: Final = "majority"
SIMPLE: Final = "simple"
#: What people call the rungs.
TITLES: Final = {
    MAJORITY: "Majority class",
    SIMPLE: "Simple baseline",
    "knn": "Nearest neighbours",
    "linear_probe": "Linear probe",
    "partial": "Partial fine-tuning",
    "full": "Full fine-tuning",
    "scratch": "From scratch",
}
#: What each rung does, in a line.
MEANING: Final = {
    MAJORITY: "always the commonest class",
    SIMPLE: "a linear model on colour histograms and tiny pixels",
    "knn": "the most similar training images, by frozen features",
    "linear_probe": "a new head on frozen features",
    "partial": "the probe, then the last stages",
    "full": "the probe, then every layer",
    "scratch": "the same network from random weights, the control",
}
_UNNEEDED: Final = "the network is more than this task needs (`--strategy simple` is the one without)."
_WIDE: Final = 0.15  # of an interval: wider, and one more mistake changes what one would say
_GLYPHS: Final = "builtin"
_OTHER_WEIGHTS: Final = (
    "That is of the built-in weights, which know printed glyphs. ImageNet's know more of photos: --weights default, or "
    "the path of a file of them."
)
_WARN_OF_FINDINGS: Final = "Read the findings first: they may make the numbers look better than they are."

Tone = Literal["good", "caution", "bad"]
_TONES: Final[dict[Tone, str]] = {"good": "Beats the baselines", "caution": "With care", "bad": "Not shown to work"}
_SIMPLE_IS_ENOUGH: Final = "A simple model is enough"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`title` is the tone in words; `headline` says how good the model is on the test images, `notes` what to make of
    it."""

    tone: Tone
    title: str
    headline: str
    notes: tuple[str, ...]


def verdict(manifest: Manifest) -> Verdict:
    """Good means: measurably better than always answering the commonest class and than the simple baseline, with
    transfer that does not hurt, and nothing found in the data that makes the numbers doubtful."""
    accuracy, tested = manifest.metrics["accuracy"], manifest.dataset.test
    on = "" if manifest.strategy in (MAJORITY, SIMPLE) else f" on {manifest.backbone}"
    headline = (
        f"{title(manifest.strategy)}{on}: right on {percent(accuracy.value)} of {tested:,} test "
        f"images (95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})."
    )
    commonest, share = majority(manifest)
    tone: Tone = "good"
    notes: list[str] = []
    if accuracy.low <= share:
        tone = "bad"
        notes.append(
            f"That is not measurably better than always answering {commonest!r}, which is right on {percent(share)}."
        )
    else:
        notes.append(f"Always answering {commonest!r} would be right on {percent(share)}{_against_simple(manifest)}.")
    transfer = manifest.ladder.transfer if manifest.ladder else None
    if transfer and transfer.simple_suffices:
        tone = _worse(tone, "good" if manifest.strategy == SIMPLE else "caution")
        notes.append(
            "A simple model does as well: "
            + ("it is kept, and there is no network in it." if manifest.strategy == SIMPLE else _UNNEEDED)
        )
    if transfer and transfer.verdict == "negative":
        tone = _worse(tone, "caution")
        notes.append("Transfer is negative: what the network was pretrained on hurts here.")
    if (
        transfer
        and manifest.pretrained.source == _GLYPHS
        and (transfer.verdict != "positive" or transfer.simple_suffices)
    ):
        notes.append(_OTHER_WEIGHTS)
    if manifest.findings:
        tone = _worse(tone, "caution")
        notes.append(_WARN_OF_FINDINGS)
    if accuracy.high - accuracy.low > _WIDE:
        notes.append(f"With {tested:,} test images the interval is wide; more would narrow it.")
    # It is a baseline itself.
    in_words = _SIMPLE_IS_ENOUGH if tone == "good" and manifest.strategy == SIMPLE else _TONES[tone]
    return Verdict(tone, in_words, headline, tuple(notes))


def majority(manifest: Manifest) -> tuple[str, float]:
    """The commonest class of the test images, and its share of them."""
    name, metrics = max(manifest.per_class.items(), key=lambda item: item[1].support)
    return name, metrics.support / max(1, sum(each.support for each in manifest.per_class.values()))


def rung_of(ladder: Ladder | None, name: str) -> Rung | None:
    """The rung of this name, if there is a ladder that has it."""
    return next((rung for rung in ladder.rungs if rung.name == name), None) if ladder else None


def title(name: str) -> str:
    """What people call a rung: `linear_probe` is `Linear probe`."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def percent(share: float) -> str:
    """`95.4 %`."""
    return f"{100 * share:.1f} %"


def amount(number: float) -> str:
    """With at most three figures and a unit: 3,504,872 is `3.5 M`."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}" if number / factor < 999.5 else f"{number / factor:,.0f}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def difference(estimate: Estimate) -> str:
    """In points of accuracy: `-1.3 (-4.0 to +1.4)`."""
    return f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def _against_simple(manifest: Manifest) -> str:
    simple, chosen = rung_of(manifest.ladder, SIMPLE), rung_of(manifest.ladder, manifest.strategy)
    if simple is None or simple.accuracy is None or manifest.strategy == SIMPLE:
        return ""
    text = f", the simple baseline on {percent(simple.accuracy.value)}"
    if chosen is not None and chosen.name != SIMPLE and chosen.accuracy is not None and chosen.accuracy.value < 1:
        fewer = (1 - simple.accuracy.value) / (1 - chosen.accuracy.value)
        if fewer >= 1.5:
            text += f": {fewer:.2g} times the mistakes" if fewer < 99.5 else f": {fewer:.0f} times the mistakes"
    return text


def _worse(one: Tone, other: Tone) -> Tone:
    order: tuple[Tone, ...] = ("good", "caution", "bad")
    return max(one, other, key=order.index)
