"""Which images are trained on and which are held out; near-duplicates of one another are on one side.

Where keeping near-duplicates together, or out, would leave a class with too little to train or to judge on, they are
split image by image, and a finding says so.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from perennial.bundle import Finding
from perennial.errors import InvalidDataset
from training.duplicates import Pairs, components
from training.listing import Entry, Skipped, Split

HELD_OUT_FIRST: Final[dict[Split | None, int]] = {"test": 0, "validation": 1, "train": 2, None: 3}

#: More of a class's training images than this are not left out for being near-duplicates of held-out ones.
MOST_LEFT_OUT: Final = 0.5
_SHOWN: Final = 12  # locations with a finding
_HELD_OUT: Final[tuple[Literal["test", "validation"], ...]] = ("test", "validation")


@dataclass(frozen=True, slots=True)
class Assigned:
    """The split of each digest, and the group of each that has near-duplicates (the digest of one of them)."""

    splits: dict[str, Split]
    groups: dict[str, str]
    findings: tuple[Finding, ...]


def leave_out(entries: Sequence[Entry], pairs: Pairs) -> tuple[list[Entry], Pairs, list[Skipped], list[Finding]]:
    """Where a split was given: the entries without those that are near-duplicates of ones that are held out more, and
    the pairs among them.

    Args:
        entries: all with a split, or none with one.
        pairs: positions in `entries`.
    """
    findings = _with_other_labels(entries, pairs)
    twin: dict[int, int] = {}  # what is left out -> what it is a copy of
    for dropped in ("validation", "train"):
        for first, second in _both_ways(pairs):
            other, own = entries[first].split, entries[second].split
            if own == dropped and HELD_OUT_FIRST[other] < HELD_OUT_FIRST[own] and first not in twin:
                twin.setdefault(second, first)
    trained = Counter(entry.label for entry in entries if entry.split == "train")
    losses = Counter(entries[at].label for at in twin if entries[at].split == "train")
    spared = {label for label, lost in losses.items() if lost > MOST_LEFT_OUT * trained[label]}
    straddling = {at: of for at, of in twin.items() if entries[at].split == "train" and entries[at].label in spared}
    twin = {at: of for at, of in twin.items() if at not in straddling}
    skipped = [
        Skipped(entries[at].location, f"a near-duplicate of {entries[of].location}, which is held out")
        for at, of in sorted(twin.items())
    ]
    if twin:
        message = (
            f"{_counted(len(twin), 'image')} to train or validate on left out, as near-duplicates of held-out ones "
            "(the same picture encoded, resized, brightened or mirrored anew): trained on, such images make the "
            "accuracy look better than it is"
        )
        findings.append(Finding(kind="near_duplicates_left_out", message=message, locations=_shown(entries, twin)))
    if straddling:
        message = (
            f"{_counted(len(straddling), 'image')} of {', '.join(map(repr, sorted(spared)))} trained on although near-"
            "duplicates of held-out ones: without them most of the class would be gone. The accuracy on this class "
            "says little about new images; hold out images of other scenes"
        )
        locations = _shown(entries, straddling)
        findings.append(Finding(kind="near_duplicates_across_splits", message=message, locations=locations))
    kept = [at for at in range(len(entries)) if at not in twin]
    return [entries[at] for at in kept], _among(pairs, kept, len(entries)), skipped, findings


def _among(pairs: Pairs, kept: Sequence[int], count: int) -> Pairs:
    place = np.full(count, -1, np.intp)
    place[kept] = np.arange(len(kept))
    first, second = place[pairs.first], place[pairs.second]
    both = (first >= 0) & (second >= 0)
    return Pairs(first[both], second[both], pairs.similarity[both], pairs.mirrored[both])


def assign(
    entries: Sequence[Entry], pairs: Pairs, *, validation: float, test: float, seed: int, listed: Counter[str]
) -> Assigned:
    """Give every entry its split: the one it came with, else by rank.

    Images are ranked by a hash of (seed, digest), a group by its first image, and fill the test share of their class,
    then its validation share. A group that would overshoot a share by more than it lacks goes to the next.

    Args:
        pairs: near-duplicates, as positions in `entries`.
        validation, test: shares of each class.
        listed: how many images each class lists, unreadable ones included.

    Raises:
        InvalidDataset: a class has too few images to train on.
    """
    given = {entry.split for entry in entries}
    needed = 3 if None in given else 1 if "validation" in given else 2
    group = components(pairs, len(entries))
    free = [at for at, entry in enumerate(entries) if entry.split in (None, "train")]
    per_class: Counter[str] = Counter(dict.fromkeys(listed, 0))
    per_class.update(entries[at].label for at in free)
    for label in sorted(listed):
        if per_class[label] < needed:
            readable = _counted(per_class[label], "readable image")
            raise InvalidDataset(
                f"class {label!r} has {readable} to train on and needs at least {needed} "
                f"({listed[label]} listed); add images or leave the class out"
            )
    units: dict[int, list[int]] = defaultdict(list)
    for at in free:
        units[int(group[at])].append(at)
    whole, dissolved = _divisible(entries, list(units.values()), needed)

    room: dict[str, dict[str, int]] = {}
    for label, count in per_class.items():
        tests = _share(test, count) if None in given else 0
        validations = _share(validation, count) if needed > 1 else 0
        while tests + validations >= count:
            tests, validations = (tests - 1, validations) if tests >= validations else (tests, validations - 1)
        room[label] = {"test": tests, "validation": validations}
    splits: dict[str, Split] = {entry.digest: entry.split for entry in entries if entry.split is not None}
    splits |= _filled(entries, whole, room, seed)

    sizes = Counter(group.tolist())
    groups = {entry.digest: entries[group[at]].digest for at, entry in enumerate(entries) if sizes[int(group[at])] > 1}
    return Assigned(splits, groups, tuple(_about_groups(entries, groups, dissolved, len(given) == 1)))


def _divisible(entries: Sequence[Entry], units: list[list[int]], needed: int) -> tuple[list[list[int]], dict[str, int]]:
    """Units of images that stay together, at least `needed` with each class; and the classes for which that took
    breaking groups up, with the size of the largest."""
    dissolved: dict[str, int] = {}
    containing = Counter(label for unit in units for label in {entries[at].label for at in unit})
    for label in sorted(label for label, count in containing.items() if count < needed):
        of_label = [unit for unit in units if any(entries[at].label == label for at in unit)]
        while len(of_label) < needed:
            largest = max(of_label, key=len)
            dissolved[label] = max(dissolved.get(label, 0), len(largest))
            units = [unit for unit in units if unit is not largest] + [[at] for at in largest]
            of_label = [unit for unit in units if any(entries[at].label == label for at in unit)]
    return units, dissolved


def _filled(
    entries: Sequence[Entry], units: Sequence[Sequence[int]], room: dict[str, dict[str, int]], seed: int
) -> dict[str, Split]:
    rank = {at: hashlib.sha256(f"{seed}:{entries[at].digest}".encode()).digest() for unit in units for at in unit}
    ordered = sorted(units, key=lambda unit: min(rank[at] for at in unit))
    counts = [Counter(entries[at].label for at in unit) for unit in ordered]
    to_come = Counter(label for count in counts for label in count)
    missing: dict[str, set[str]] = {
        label: {"train", *(split for split in _HELD_OUT if shares[split])} for label, shares in room.items()
    }
    splits: dict[str, Split] = {}
    for unit, count in zip(ordered, counts, strict=True):
        to_come.subtract(count.keys())

        def spares_the_rest(split: Split, labels: Iterable[str] = tuple(count)) -> bool:
            return all(len(missing[label] - {split}) <= to_come[label] for label in labels)

        chosen: Split = "train"
        for split in _HELD_OUT:
            fits = all(room[label][split] > 0 and size <= 2 * room[label][split] for label, size in count.items())
            if fits and spares_the_rest(split):
                chosen = split
                break
        else:
            if not spares_the_rest("train"):  # the last chance of some class to be held out
                wanting: list[Split] = [split for split in _HELD_OUT if any(split in missing[label] for label in count)]
                chosen = next((split for split in wanting if spares_the_rest(split)), "train")
        for label, size in count.items():
            missing[label].discard(chosen)
            if chosen != "train":
                room[label][chosen] -= size
        splits |= dict.fromkeys((entries[at].digest for at in unit), chosen)
    return splits


def _share(share: float, count: int) -> int:
    return max(1, int(share * count + 0.5))


# --- what is said about them -----------------------------------------------------------------------------


def _with_other_labels(entries: Sequence[Entry], pairs: Pairs) -> list[Finding]:
    clashes = [(a, b) for a, b in _one_way(pairs) if entries[a].label != entries[b].label]
    if not clashes:
        return []
    a, b = clashes[0]
    message = (
        f"{_counted(len(clashes), 'pair')} of near-duplicates with different labels, such as "
        f"{entries[a].location} ({entries[a].label!r}) and {entries[b].location} ({entries[b].label!r}): one of the "
        "two labels is probably wrong"
    )
    shown = _shown(entries, dict(clashes))
    return [Finding(kind="near_duplicates_with_other_labels", message=message, locations=shown)]


def _about_groups(
    entries: Sequence[Entry], groups: Mapping[str, str], dissolved: Mapping[str, int], unsplit: bool
) -> list[Finding]:
    findings = []
    if groups and unsplit:
        number = _counted(len(set(groups.values())), "group")
        message = f"{_counted(len(groups), 'image')} with near-duplicates, in {number}, each on one side of the split"
        if dissolved:
            message += f", but for those of {', '.join(map(repr, sorted(dissolved)))}"
        shown = sorted((groups[entry.digest], entry.location) for entry in entries if entry.digest in groups)
        locations = tuple(location for _, location in shown[:_SHOWN])
        findings.append(Finding(kind="near_duplicates", message=message, locations=locations))
    for label, size in sorted(dissolved.items()):
        message = (
            f"{size} images of class {label!r} are near-duplicates of one another and there is little else of it, so "
            "they had to be put on both sides of the split: the accuracy on this class says little about new images; "
            "add images of other scenes"
        )
        shown = [
            (groups[entry.digest], entry.location)
            for entry in entries
            if entry.label == label and entry.digest in groups
        ]
        locations = tuple(location for _, location in sorted(shown)[:_SHOWN])
        findings.append(Finding(kind="near_duplicates_across_splits", message=message, locations=locations))
    return findings


def _one_way(pairs: Pairs) -> list[tuple[int, int]]:
    return sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def _both_ways(pairs: Pairs) -> list[tuple[int, int]]:
    one_way = _one_way(pairs)
    return sorted(one_way + [(second, first) for first, second in one_way])


def _shown(entries: Sequence[Entry], twins: Mapping[int, int]) -> tuple[str, ...]:
    some = [location for at, of in sorted(twins.items()) for location in (entries[at].location, entries[of].location)]
    return tuple(dict.fromkeys(some))[:_SHOWN]


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
