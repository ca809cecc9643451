"""Does what the files say of themselves, without a look at the pixels, already tell the class?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from perennial.bundle import Finding
from training.glance import Metadata

#: A leak is reported where the attribute takes away this share of the errors of always answering the commonest class,
MATTERS: Final = 0.5
#: or tells one class from all others with this balanced accuracy,
MATTERS_FOR_A_CLASS: Final = 0.9
#: and neither by chance at this level, divided by the number of attributes (and of classes).
ALPHA: Final = 0.001
_FOLDS: Final = 5
_BINS: Final = 16
_FEWEST: Final = 20  # images, and 5 of a class, below which nothing is said
_FEWEST_OF_A_CLASS: Final = 5

# Bytes a pixel are left out: of steel textures they tell the defect, because rough surfaces take more bytes; that is
# what the images show, not how they were made.
ATTRIBUTES: Final[Mapping[str, Callable[[Metadata], object]]] = {
    "file format": lambda file: file.format,
    "pixel mode": lambda file: file.mode,
    "EXIF tags": lambda file: "present" if file.exif else "absent",
    "image size": lambda file: f"{file.width} x {file.height}",
    "width": lambda file: float(file.width),
    "height": lambda file: float(file.height),
    "aspect ratio": lambda file: round(file.width / file.height, 2),
    "JPEG quality": lambda file: float(file.quality or 0),
}


@dataclass(frozen=True, slots=True)
class Leak:
    """What one attribute alone tells, on images that its rule was not made from.

    `accuracy` is the share of the images whose class it tells, `majority` what always answering the commonest class
    gets; `label` and `balanced_accuracy` are of the class that it tells best from all others. `p_value` is of the more
    telling of the two.
    """

    attribute: str
    accuracy: float
    majority: float
    label: str
    balanced_accuracy: float
    p_value: float
    matters: bool


def metadata_leaks(files: Sequence[Metadata], labels: Sequence[str], seed: int = 0) -> tuple[Leak, ...]:
    """What each attribute tells of the class, the most telling first.

    The rule is 1R (Holte, 1993, Very simple classification rules perform well on most commonly used datasets): the
    attribute's values, or 16 quantiles of them, each with the class it speaks for; cross-validated in 5 folds, and
    compared with the majority class by an exact binomial test.

    Args:
        files, labels: of each image.
    """
    classes, truth = np.unique(np.asarray(labels), return_inverse=True)
    sizes = np.bincount(truth)
    if len(labels) < _FEWEST or len(classes) < 2 or sizes.min() < _FEWEST_OF_A_CLASS:
        return ()
    fold = np.random.default_rng(seed).permutation(len(labels)) % _FOLDS
    leaks = []
    for name, attribute in ATTRIBUTES.items():
        values = _bins([attribute(file) for file in files])
        if values.max() > 0:
            leaks.append(_judged(name, values, truth, classes, fold))
    return tuple(
        sorted(
            leaks, key=lambda leak: (leak.matters, round(max(leak.accuracy, leak.balanced_accuracy), 2)), reverse=True
        )
    )


def findings(files: Sequence[Metadata], labels: Sequence[str], seed: int = 0) -> tuple[Finding, ...]:
    """One finding for the attributes that tell the class; none where none does."""
    leaks = [leak for leak in metadata_leaks(files, labels, seed) if leak.matters]
    if not leaks:
        return ()
    worst = leaks[0]
    values = [ATTRIBUTES[worst.attribute](file) for file in files]
    if _share_of_errors(worst) >= MATTERS:
        what = (
            f"{worst.attribute} alone tells the class of {worst.accuracy:.0%} of the images (always answering the "
            f"commonest class: {worst.majority:.0%})"
        )
    else:
        what = (
            f"{worst.attribute} alone tells {worst.label!r} from all other classes ({worst.balanced_accuracy:.0%}, "
            "where a coin gets 50%)"
        )
    others = ", ".join(leak.attribute for leak in leaks[1:])
    more = f"; telling too: {others}" if others else ""
    example = _example(worst.attribute, values, labels)
    message = (
        f"{what}: {example}{more}. If new images will not differ so, a model "
        "may learn how the files were made instead of what they show: look whether the classes come from different "
        "sources, and bring the files into one form"
    )
    return (Finding(kind="metadata_leak", message=message),)


def _bins(values: Sequence[object]) -> NDArray[np.intp]:
    """Whole numbers from 0: the value itself where there are few, its quantile where there are many numbers, and one
    number for all texts that are rare."""
    known, index, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    if len(known) <= _BINS:
        return np.asarray(index, dtype=np.intp)
    if known.dtype.kind == "f":
        edges = np.unique(np.quantile(np.asarray(values, dtype=np.float64), np.linspace(0, 1, _BINS + 1)[1:-1]))
        return np.asarray(np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right"), dtype=np.intp)
    place = np.full(len(known), _BINS)
    place[np.argsort(-counts, kind="stable")[:_BINS]] = np.arange(_BINS)
    return np.asarray(place[index], dtype=np.intp)


def _judged(
    name: str, values: NDArray[np.intp], truth: NDArray[Any], classes: NDArray[Any], fold: NDArray[Any]
) -> Leak:
    count, width = len(classes), int(values.max()) + 1
    sizes = np.bincount(truth, minlength=count)
    right = 0
    hits = np.zeros(count)  # images of a class that the class's own rule takes for it
    false = np.zeros(count)  # images of others that it takes for it
    for number in range(_FOLDS):
        inside = fold == number
        table = np.zeros((width, count))
        np.add.at(table, (values[~inside], truth[~inside]), 1)
        totals = table.sum(axis=0)
        answer = np.where(table.any(axis=1), table.argmax(axis=1), totals.argmax())
        right += int((answer[values[inside]] == truth[inside]).sum())
        own = table / np.maximum(totals, 1)
        others = (table.sum(axis=1, keepdims=True) - table) / np.maximum(len(truth) - inside.sum() - totals, 1)
        taken = own > others
        table = np.zeros((width, count))
        np.add.at(table, (values[inside], truth[inside]), 1)
        hits += (table * taken).sum(axis=0)
        false += ((table.sum(axis=1, keepdims=True) - table) * taken).sum(axis=0)
    majority = float(sizes.max()) / len(truth)
    accuracy = right / len(truth)
    balanced = (hits / sizes + 1 - false / (len(truth) - sizes)) / 2
    best = int(balanced.argmax())
    overall = float(binomtest(right, len(truth), majority, alternative="greater").pvalue) * len(ATTRIBUTES)
    # Of the class's images, more are hits than of the others are false, were both alike.
    rate = max((false[best] + 1) / (len(truth) - sizes[best] + 1), 1e-9)
    single = float(binom.sf(hits[best] - 1, sizes[best], min(rate, 1.0))) * len(ATTRIBUTES) * count
    leak = Leak(name, accuracy, majority, str(classes[best]), float(balanced[best]), min(overall, single, 1.0), False)
    matters = (_share_of_errors(leak) >= MATTERS and overall < ALPHA) or (
        leak.balanced_accuracy >= MATTERS_FOR_A_CLASS and single < ALPHA
    )
    return Leak(name, accuracy, majority, leak.label, leak.balanced_accuracy, leak.p_value, matters)


def _share_of_errors(leak: Leak) -> float:
    return (leak.accuracy - leak.majority) / max(1 - leak.majority, 1e-9)


def _example(name: str, values: Sequence[object], labels: Sequence[str]) -> str:
    """Such as `98% of 'cat' have file format PNG, 3% of the others`: what sets a class apart the most."""
    classes, truth = np.unique(np.asarray(labels), return_inverse=True)
    if len(set(values)) > _BINS and isinstance(values[0], float):
        numbers = np.asarray(values, dtype=np.float64)
        medians = [float(np.median(numbers[truth == at])) for at in range(len(classes))]
        low, high = int(np.argmin(medians)), int(np.argmax(medians))
        return (
            f"its median is {medians[low]:g} for {str(classes[low])!r} and {medians[high]:g} for {str(classes[high])!r}"
        )
    texts, index = np.unique(np.asarray([_text(value) for value in values]), return_inverse=True)
    table = np.zeros((len(texts), len(classes)))
    np.add.at(table, (index, truth), 1)
    sizes = table.sum(axis=0)
    own = table / sizes
    others = (table.sum(axis=1, keepdims=True) - table) / (len(values) - sizes)
    value, label = np.unravel_index(int((own - others).argmax()), table.shape)
    of_class, of_others = f"{own[value, label]:.0%} of {str(classes[label])!r}", f"{others[value, label]:.0%}"
    return f"{of_class} have {name} {texts[value]}, {of_others} of the others"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
