"""From what the families found to a verdict and its causes: one pure function, and nothing else.

The order of the rules is that of the causes: a broken collection explains everything after it, a changed lens
explains the embedding it moved, a changed class mix the outputs it moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from monitoring.detectors import Column, Family
from monitoring.lens import Misfit
from monitoring.verdict import Cause, Verdict

# Half a standard deviation beside an AUC of .9: a lens that changed the embedding so much shows more than that.
_FAINT: Final = 2.0
_ALTOGETHER: Final = 0.9

#: How a moved property is called, less and more.
_DIRECTIONS: Final = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "of more contrast"),
    "sharpness": ("softer", "sharper or noisier"),
    "smoothness": ("of more fine detail, or noisier", "smoother, or compressed more"),
    "saturation": ("paler", "more saturated"),
    "red": ("less red", "more red"),
    "green": ("less green", "more green"),
    "blue": ("less blue", "more blue"),
    "red_green": ("greener", "redder"),
    "yellow_blue": ("bluer", "yellower"),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict rests on. A family is None where it could not be run.

    `rows` were received, of which `distinct` are different images. `faults` are broken rules of collection, in words.
    `within_classes` is the domain classifier with the class mix taken out; its `alarm` means that it still fires.
    `misfit` says what of the properties' shift one lens cannot explain. `mix_explains_properties`: once the reference
    has the window's class mix, no property is shifted by more than its floor. `novel_properties` are those by which the
    novel images differ from the reference, most first.
    """

    rows: int
    distinct: int
    min_rows: int
    faults: tuple[str, ...] = ()
    properties: Family | None = None
    output: Family | None = None
    class_mix: Family | None = None
    embedding: Family | None = None
    within_classes: Family | None = None
    novelty: Family | None = None
    labels: Family | None = None
    misfit: Misfit | None = None
    mix_explains_properties: bool = False
    novel_properties: tuple[Column, ...] = ()


def attribute(evidence: Evidence) -> tuple[Verdict, tuple[Cause, ...]]:
    """The verdict, and every cause found; the verdict is the first of them."""
    causes = [Cause(Verdict.COLLECTION_FAULT, fault) for fault in evidence.faults]
    if evidence.rows < evidence.min_rows:
        why = f"{evidence.rows} predictions; {evidence.min_rows} are needed (monitor.min_rows)"
        causes.append(Cause(Verdict.INSUFFICIENT_DATA, why))
        return causes[0].cause, tuple(causes)
    if not causes and evidence.distinct * 4 < evidence.min_rows:
        return Verdict.INSUFFICIENT_DATA, (
            Cause(
                Verdict.INSUFFICIENT_DATA,
                f"{evidence.rows} predictions, but of only {evidence.distinct} different images",
            ),
        )
    inputs = _of_inputs(evidence)
    causes += inputs
    if _fires(evidence.labels):
        causes += _of_labels(evidence, inputs)
    return (causes[0].cause if causes else Verdict.OK), tuple(causes)


def _of_inputs(evidence: Evidence) -> list[Cause]:
    mix, within = _fires(evidence.class_mix), _fires(evidence.within_classes)
    causes = []
    if _fires(evidence.properties) and not (mix and evidence.mix_explains_properties):
        causes.append(_of_properties(evidence))
    elif within and (mix or _fires(evidence.embedding) or _fires(evidence.output)):
        causes.append(Cause(Verdict.DATA_DRIFT, _images_differ(evidence), ("embedding",)))
    if mix and not within:
        causes.append(Cause(Verdict.PRIOR_SHIFT, _mix_differs(evidence.class_mix), _moved_classes(evidence.class_mix)))
    elif not causes and (_fires(evidence.embedding) or _fires(evidence.output)):
        # Something moved, yet within each class nothing did: a change of mix too small to be called one by itself.
        if evidence.class_mix is not None and evidence.class_mix.p_value <= 0.05:
            why = _mix_differs(evidence.class_mix)
            causes.append(Cause(Verdict.PRIOR_SHIFT, why, _moved_classes(evidence.class_mix)))
        else:
            seen = evidence.output.alarmed if evidence.output is not None else ()
            why = _images_differ(evidence) if _fires(evidence.embedding) else _outputs_differ(seen)
            causes.append(Cause(Verdict.DATA_DRIFT, why, tuple(column.name for column in seen[:3])))
    if not causes and _fires(evidence.novelty):
        names = tuple(column.name for column in evidence.novel_properties)
        causes.append(Cause(Verdict.DATA_DRIFT, _some_are_novel(evidence), names))
    return causes


def _of_properties(evidence: Evidence) -> Cause:
    assert evidence.properties is not None
    moved = evidence.properties.alarmed
    words = "; ".join(describe(column) for column in moved[:3])
    names = tuple(column.name for column in moved)
    if _too_faint(evidence):
        return Cause(Verdict.DATA_DRIFT, f"{_images_differ(evidence)}; the properties moved a little: {words}", names)
    if evidence.misfit is None or evidence.misfit.one_lens:
        return Cause(Verdict.SENSOR_SHIFT, f"every image is changed alike: {words}", names)
    return Cause(
        Verdict.DATA_DRIFT,
        f"these are other images, not the same through another lens: {words}, and the properties no longer go "
        f"together as they did (structure {evidence.misfit.structure:.2f}, shape {evidence.misfit.shape:.2f})",
        names,
    )


def _too_faint(evidence: Evidence) -> bool:
    """Properties that only just moved do not explain an embedding that moved altogether."""
    assert evidence.properties is not None
    within = evidence.within_classes
    return (
        evidence.properties.score < _FAINT * evidence.properties.floor
        and within is not None
        and within.alarm
        and within.score >= _ALTOGETHER
    )


def _of_labels(evidence: Evidence, inputs: Sequence[Cause]) -> list[Cause]:
    assert evidence.labels is not None
    worst = evidence.labels.alarmed[0]
    names = tuple(column.name for column in evidence.labels.alarmed)
    loss = f"{worst.name.replace('recall:', 'recall of ')} fell by {worst.effect:.1%}"
    if not inputs:
        return [Cause(Verdict.CONCEPT_DRIFT, f"the images are as they were, yet {loss}", names)]
    if all(cause.cause is Verdict.PRIOR_SHIFT for cause in inputs):
        return [Cause(Verdict.CONCEPT_DRIFT, f"each class's images are as they were, yet {loss}", names)]
    if evidence.output is not None and not evidence.output.alarm:
        return [Cause(Verdict.CONCEPT_DRIFT, f"the model answers as it did, yet {loss}", names)]
    return []  # the change of input explains the loss


def describe(column: Column) -> str:
    """A moved column in words, such as "darker (brightness -1.9 sd)"."""
    name = column.name.removeprefix("property:")
    if abs(column.shift) < column.effect / 2:
        return f"{name} spread differently ({column.effect:.1f} sd)"
    less, more = _DIRECTIONS.get(name, (f"less {name}", f"more {name}"))
    return f"{more if column.shift > 0 else less} ({name} {column.shift:+.1f} sd)"


def _images_differ(evidence: Evidence) -> str:
    family = evidence.within_classes if _fires(evidence.within_classes) else evidence.embedding
    score = f" (a classifier tells them apart with AUC {family.score:.2f})" if family is not None else ""
    return f"images of the same predicted class look different to the model{score}"


def _some_are_novel(evidence: Evidence) -> str:
    assert evidence.novelty is not None
    moved = "; ".join(describe(column) for column in evidence.novel_properties)
    return (
        f"most images are as they were, yet {evidence.novelty.score:.1%} more than should be are like nothing in the "
        f"reference{': ' + moved if moved else ''}"
    )


def _outputs_differ(columns: Sequence[Column]) -> str:
    return "the model's outputs moved: " + ", ".join(f"{c.name} {c.shift:+.1f} sd" for c in columns[:3])


def _mix_differs(family: Family | None) -> str:
    assert family is not None
    moved = sorted(family.columns, key=lambda column: -column.effect)[:3]
    return "the classes come in other shares: " + ", ".join(f"{c.name} {c.shift:+.0%}" for c in moved)


def _moved_classes(family: Family | None) -> tuple[str, ...]:
    assert family is not None
    return tuple(column.name for column in sorted(family.columns, key=lambda column: -column.effect)[:3])


def _fires(family: Family | None) -> bool:
    return family is not None and family.alarm
