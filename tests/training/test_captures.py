"""Which labelled captures are trained on, which are judged on, and which are left out: on a real ledger."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from perennial.bundle import Bundle, Dataset, Manifest, Pretrained, write_bundle
from perennial.errors import InvalidDataset
from perennial.ids import new_id
from perennial.images import ImageHeader, ImageLimits, InputRule
from perennial.ledger import EventKind, events, labels, models, predictions
from perennial.ledger.labels import Feedback
from perennial.ledger.predictions import Prediction
from perennial.storage import Storage, capture_key, sha256
from training.captures import Capture, Captures, divide, find, verified
from training.datasets import LabelledImages, Row
from training.glance import glance
from training.material import MOST_WEIGHT, Material, Pinned, combine
from training.meaning import ChangedClass, changed_before
from training.near_copies import NearCopies, near_copies

CLASSES = ("a", "b")
EPOCH = datetime(2026, 3, 1, tzinfo=UTC)
LIVE, OLD = "20260201-000000-000aa", "20260101-000000-000aa"


def picture(number: int) -> bytes:
    """A small PNG, another one for each number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path / 'storage'}")


@pytest.fixture
def seen(engine: sa.Engine, storage: Storage, tmp_path: Path) -> Callable[..., str]:
    """Puts a prediction with its capture into the ledger: `seen(number, minute, version=LIVE, label="a")`."""
    for version in (OLD, LIVE):
        models.register(engine, bundle(tmp_path / "bundles", version), f"file://{tmp_path}/{version}")

    def see(number: int, minute: int, *, version: str = LIVE, predicted: str = "a", label: str | None = None) -> str:
        data = picture(number)
        at = EPOCH + timedelta(minutes=minute)
        row = Prediction(
            id=new_id(int(at.timestamp() * 1000)),
            at=at,
            model_version=version,
            precision="float32",
            label=predicted,
            confidence=0.9,
            probabilities=np.array([0.9, 0.1], np.float32),
            embedding=np.zeros(2, np.float32),
            properties=np.zeros(7, np.float32),
            width=8,
            height=8,
            format="PNG",
            mode="RGB",
            bytes=len(data),
            image_digest=sha256(data),
            image_url=storage.write(capture_key(sha256(data), "PNG"), data),
            source=None,
            latency_ms=1.0,
        )
        predictions.record(engine, [row])
        if label is not None:
            labels.add(engine, [Feedback(row.id, label)])
        return row.id

    return see


def bundle(folder: Path, version: str, parent: str | None = None) -> Bundle:
    manifest = Manifest(
        name="default",
        version=version,
        created_at=EPOCH,
        classes=CLASSES,
        input=InputRule(8, 8),
        backbone="none",
        pretrained=Pretrained(source="none", sha256=""),
        strategy="linear_probe",
        why="",
        dataset=Dataset(location="", fingerprint="", train=0, validation=0, test=0),
        metrics={},
        per_class={},
        temperature=1.0,
        properties=(),
        precisions=("float32",),
        seed=0,
        parent=parent,
        packages={},
    )
    return write_bundle(folder, manifest, lambda place: (place / "graph.onnx").write_bytes(b"x"))


def digests(captures: Sequence[Capture]) -> list[str]:
    return sorted(capture.digest for capture in captures)


def of(*numbers: int) -> list[str]:
    return sorted(sha256(picture(number)) for number in numbers)


# --- from the ledger -------------------------------------------------------------------------------------


def test_fresh_are_the_live_versions_captures_since_the_window_began(
    engine: sa.Engine, seen: Callable[..., str]
) -> None:
    seen(1, minute=0, version=OLD, label="a")
    seen(2, minute=10, label="a")
    seen(3, minute=20, label="b")
    seen(4, minute=30, label="b")
    seen(5, minute=40)  # no label
    found = find(engine, "default", LIVE, window=100, classes=CLASSES, since=EPOCH + timedelta(minutes=20))
    assert digests(found.fresh) == of(3, 4)
    assert digests(found.older) == of(1, 2)
    assert not found.skipped
    assert {capture.header for capture in found.fresh} == {ImageHeader("PNG", "RGB", 8, 8)}, "as they were sent"


def test_without_a_window_the_newest_labelled_ones_are_fresh(engine: sa.Engine, seen: Callable[..., str]) -> None:
    for number in range(6):
        seen(number, minute=number, label="a")
    found = find(engine, "default", LIVE, window=4, classes=CLASSES)
    assert digests(found.fresh) == of(2, 3, 4, 5)
    assert digests(found.older) == of(0, 1)


def test_since_a_drift_began_a_gate_that_waited_sees_all_that_came(engine: sa.Engine, seen: Callable[..., str]) -> None:
    for number in range(8):
        seen(number, minute=number, label="a")
    began = EPOCH + timedelta(minutes=1)
    found = find(engine, "default", LIVE, window=4, classes=CLASSES, since=began)
    assert digests(found.fresh) == of(1, 2, 3, 4, 5, 6, 7)
    assert digests(found.older) == of(0)
    # What is read stays bounded: of five windows of one only the newest five.
    found = find(engine, "default", LIVE, window=1, classes=CLASSES, since=began)
    assert digests(found.fresh) == of(3, 4, 5, 6, 7)


def test_an_image_sent_twice_counts_once_with_the_last_label_given(engine: sa.Engine, seen: Callable[..., str]) -> None:
    first = seen(1, minute=0, version=OLD, label="a")
    seen(1, minute=10, label="a")
    seen(1, minute=20, label="b")
    [capture] = find(engine, "default", LIVE, window=10, classes=CLASSES).fresh
    assert capture.label == "b"
    labels.add(engine, [Feedback(first, "b")])
    labels.add(engine, [Feedback(first, "a")])  # given last, though to the earliest prediction
    found = find(engine, "default", LIVE, window=10, classes=CLASSES)
    assert [capture.label for capture in found.fresh] == ["a"]
    assert not found.older


def test_a_label_that_is_no_class_is_left_out_and_listed(engine: sa.Engine, seen: Callable[..., str]) -> None:
    seen(1, minute=0, label="a")
    seen(2, minute=1, label="zebra")
    found = find(engine, "default", LIVE, window=10, classes=CLASSES)
    assert digests(found.fresh) == of(1)
    assert "'zebra' is not a class" in found.skipped[0].reason


def test_an_unreadable_or_altered_capture_is_left_out_and_listed(
    engine: sa.Engine, seen: Callable[..., str], storage: Storage
) -> None:
    for number in range(3):
        seen(number, minute=number, label="a")
    gone, altered = (storage.local_path(capture_key(sha256(picture(number)), "PNG")) for number in (0, 1))
    assert gone is not None
    assert altered is not None
    gone.unlink()
    altered.write_bytes(picture(9))
    found = verified(find(engine, "default", LIVE, window=10, classes=CLASSES), storage, ImageLimits())
    assert digests(found.fresh) == of(2)
    reasons = {skip.location: skip.reason for skip in found.skipped}
    keys = [capture_key(sha256(picture(number)), "PNG") for number in (0, 1)]
    assert "cannot be read" in reasons[storage.url_of(keys[0])]
    assert reasons[storage.url_of(keys[1])] == "its bytes are not those that were predicted on"


def test_what_earlier_retrains_found_changed_is_remembered_along_the_lineage(
    engine: sa.Engine, seen: Callable[..., str], tmp_path: Path
) -> None:
    gate = {"gate": {"changed_classes": [{"label": "a"}]}}
    events.add(engine, "default", EventKind.GATE_PASSED, {"version": LIVE, **gate})
    events.add(engine, "default", EventKind.GATE_REFUSED, {"version": "another", "gate": {"changed_classes": []}})
    assert list(changed_before(engine, "default", (LIVE, OLD))) == ["a"]
    assert changed_before(engine, "default", (OLD,)) == {}


# --- sides -----------------------------------------------------------------------------------------------


def capture(number: int, label: str = "a", *, minute: int = 0, predicted: str = "a") -> Capture:
    digest = sha256(picture(number))
    return Capture(digest, f"file:///{digest}", label, predicted, LIVE, EPOCH + timedelta(minutes=minute))


def test_sides_are_stratified_exact_and_repeatable() -> None:
    fresh = [capture(number, "a") for number in range(70)] + [capture(number, "b") for number in range(100, 130)]
    sides = divide(fresh, holdout=0.3, validation=0.15, seed=3)
    assert Counter(sides.values()) == {"test": 30, "validation": 10, "train": 60}
    judged = [one for one in fresh if sides[one.digest] == "test"]
    assert Counter(one.label for one in judged) == {"a": 21, "b": 9}
    assert divide(list(reversed(fresh)), holdout=0.3, validation=0.15, seed=3) == sides
    assert divide(fresh, holdout=0.3, validation=0.15, seed=4) != sides


def test_the_only_capture_of_a_label_is_trained_on() -> None:
    fresh = [capture(number, "a") for number in range(10)] + [capture(99, "b")]
    for seed in range(5):
        assert divide(fresh, holdout=0.9, validation=0.15, seed=seed)[sha256(picture(99))] == "train"


def test_what_a_model_was_trained_on_is_never_judged_and_what_was_held_out_never_trained() -> None:
    fresh = [capture(number) for number in range(40)]
    trained, held_out = set(of(*range(10))), set(of(*range(10, 20)))
    for seed in range(5):
        sides = divide(fresh, holdout=0.5, validation=0.2, seed=seed, never_judged=trained, never_trained=held_out)
        assert all(sides[digest] != "test" for digest in trained)
        assert all(sides[digest] == "test" for digest in held_out)


# --- together with the original data ---------------------------------------------------------------------


def original(count: int = 40) -> LabelledImages:
    """Rows 1000.., two of five held out for test, one in eight for validation."""
    rows = []
    for index in range(count):
        split = "test" if index % 5 < 2 else "validation" if index % 8 == 3 else "train"
        rows.append(
            Row(f"/data/{index}", CLASSES[index % 2], sha256(picture(1000 + index)), split, reference=split != "train")  # type: ignore[arg-type]
        )
    return LabelledImages("/data", CLASSES, tuple(rows), ())


def together(images: LabelledImages, captures: Captures, **more: Any) -> Material:
    return combine(images, captures, **({"pinned": {}, "seed": 0, "holdout": 0.3, "validation": 0.15} | more))


def fresh_only(*captures: Capture) -> Captures:
    return Captures(tuple(captures), (), ())


def test_fresh_rows_together_weigh_as_much_as_all_others_but_each_at_most_so_much() -> None:
    images = original(400)
    few = together(images, fresh_only(*(capture(n, CLASSES[n % 2]) for n in range(10))))
    many = together(images, fresh_only(*(capture(n, CLASSES[n % 2]) for n in range(200))))
    assert {row.weight for row in few.images.rows if row.origin == "capture"} == {MOST_WEIGHT}
    trained = [row for row in many.images.rows if row.split == "train"]
    weight = {origin: sum(row.weight for row in trained if row.origin == origin) for origin in ("original", "capture")}
    assert weight["capture"] == pytest.approx(weight["original"])


def test_enough_fresh_rows_become_the_reference_and_few_only_join_it() -> None:
    images, sent = original(), ImageHeader("JPEG", "L", 640, 480)
    for count, expected in ((99, {"original", "capture"}), (100, {"capture"})):
        material = together(
            images,
            fresh_only(*(replace(capture(n, CLASSES[n % 2]), header=sent) for n in range(count))),
        )
        assert {row.origin for row in material.images.rows if row.reference} == expected
        assert {row.header for row in material.images.rows if row.origin == "capture"} == {sent}
        assert all(row.reference for row in material.images.rows if row.origin == "capture")


def test_a_held_out_image_that_was_captured_is_judged_on_and_never_trained_on() -> None:
    images = original()
    held_out = next(row for row in images.rows if row.split == "test")
    again = replace(capture(1), digest=held_out.digest, url="file:///again", label="b")
    others = [capture(n, CLASSES[n % 2]) for n in range(10, 30)]
    as_fresh = together(images, fresh_only(again, *others))
    assert [row.location for row in as_fresh.fresh if row.digest == held_out.digest] == ["file:///again"]
    assert held_out.digest not in {row.digest for row in as_fresh.old}
    as_older = together(images, Captures(tuple(others), (again,), ()))
    assert [row.location for row in as_older.images.rows if row.digest == held_out.digest] == [held_out.location]


def test_the_newest_label_of_an_image_replaces_the_one_in_the_original_data() -> None:
    images = original()
    trained = next(row for row in images.rows if row.split == "train" and row.label == "a")
    again = replace(capture(1), digest=trained.digest, label="b")
    pinned = {row.digest: Pinned(row.label, row.split, row.origin) for row in images.rows}
    material = together(images, fresh_only(again), pinned=pinned)
    [row] = [row for row in material.images.rows if row.digest == trained.digest]
    assert (row.label, row.origin, row.split) == ("b", "capture", "train")


def test_old_rows_of_a_class_that_changed_are_neither_trained_nor_judged_on() -> None:
    images = original()
    changed = ChangedClass("a", "b", 10, 0, 10, 0.9, 0.0, 0.9, 0.0)
    fresh = [capture(n, CLASSES[n % 2]) for n in range(20)]
    older = (capture(50, "a"), capture(51, "b"))
    material = together(images, Captures(tuple(fresh), older, ()), changed=[changed])
    assert {row.label for row in material.old} == {"b"}
    assert {row.label for row in material.images.rows if row.origin == "original"} == {"b"}
    assert {row.label for row in material.fresh} == {"a", "b"}
    assert material.images.classes == ("a", "b")
    assert older[0].digest not in {row.digest for row in material.images.rows}
    assert material.left_out["original images of a class whose meaning changed"] == 20


def test_rows_with_an_old_meaning_do_not_come_back_in_the_next_retrain() -> None:
    images = original()
    # The champion was trained after "a" changed: it knows the rows of "b" and one new row of "a".
    known = {row.digest: Pinned(row.label, row.split, row.origin) for row in images.rows if row.label == "b"}
    new_meaning, old_meaning, later = capture(60, minute=1), capture(61, minute=1), capture(62, minute=9)
    known[new_meaning.digest] = Pinned("a", "train", "capture")
    material = together(
        images,
        Captures(tuple(capture(n, "b") for n in range(10)), (new_meaning, old_meaning, later), ()),
        pinned=known,
        changed_before={"a": EPOCH + timedelta(minutes=5)},
    )
    used = {row.digest for row in material.images.rows if row.label == "a"}
    assert used == {new_meaning.digest, later.digest}


def test_a_class_with_nothing_left_to_learn_from_is_no_longer_an_answer_but_still_judged_on() -> None:
    images = original()
    rows = tuple(replace(row, label="c") if index % 4 == 1 else row for index, row in enumerate(images.rows))
    images = replace(images, classes=("a", "b", "c"), rows=rows)
    changed = ChangedClass("a", "b", 10, 0, 10, 0.9, 0.0, 0.9, 0.0)
    held_out = next(row for row in rows if row.split == "test" and row.label == "a")
    fresh = [capture(n, "b") for n in range(20)] + [replace(capture(70, "a"), digest=held_out.digest)]
    material = together(images, fresh_only(*fresh), changed=[changed])
    assert material.images.classes == ("b", "c")
    assert "a" in {row.label for row in material.fresh}
    assert {row.label for row in material.images.rows} == {"b", "c"}
    with pytest.raises(InvalidDataset, match="a classifier needs two"):
        together(images, fresh_only(*fresh), changed=[changed, replace(changed, label="c")])


def test_captures_that_an_earlier_gate_judged_on_stay_held_out_and_guard_what_was_learnt() -> None:
    images = original()
    older = tuple(capture(number, CLASSES[number % 2]) for number in range(30))
    fresh = tuple(capture(number, CLASSES[number % 2]) for number in range(100, 130))
    judged = {one.digest for one in older[:9]}
    pinned = {row.digest: Pinned(row.label, row.split, "original") for row in images.rows} | {
        one.digest: Pinned(one.label, "test" if one.digest in judged else "train", "capture") for one in older
    }
    material = together(images, Captures(fresh, older, ()), pinned=pinned)
    splits = {row.digest: row.split for row in material.images.rows}
    assert {splits[digest] for digest in judged} == {"test"}
    assert {splits[one.digest] for one in older[9:]} == {"train"}
    assert judged <= {row.digest for row in material.old}
    assert {row.digest for row in material.fresh} <= {one.digest for one in fresh}


# --- near-duplicates -------------------------------------------------------------------------------------


def used(material: Material, split: str) -> set[str]:
    return {row.digest for row in material.images.rows if row.origin == "capture" and row.split == split}


def test_near_duplicates_are_on_one_side_and_judged_on_once() -> None:
    fresh = [capture(n, CLASSES[n % 2]) for n in range(60)]
    # Three scenes that were filmed ten times each, and thirty pictures of their own.
    scenes = {fresh[n].digest: fresh[n % 3].digest for n in range(30)}
    for seed in range(5):
        sides = divide(fresh, holdout=0.5, validation=0.2, seed=seed, groups=scenes)
        assert len(sides) == 60
        for scene in set(scenes.values()):
            assert len({sides[digest] for digest, group in scenes.items() if group == scene}) == 1
        material = together(original(), fresh_only(*fresh), holdout=0.5, seed=seed, copies=NearCopies(scenes))
        judged = [row.digest for row in material.fresh]
        groups = [scenes.get(digest, digest) for digest in judged]
        assert len(set(groups)) == len(groups) > 10
        trained = used(material, "train") | used(material, "validation")
        assert not {scenes.get(digest, digest) for digest in trained} & set(groups)
        left_out = material.left_out.get("fresh captures that are near-duplicates of one that is judged on", 0)
        assert len(judged) + len(trained) + left_out == 60


def test_nothing_like_a_held_out_image_is_trained_on() -> None:
    fresh = [capture(n, CLASSES[n % 2]) for n in range(20)]
    older = [capture(n, CLASSES[n % 2]) for n in range(100, 110)]
    twins = frozenset({fresh[0].digest, older[0].digest})
    copies = NearCopies({older[1].digest: fresh[0].digest, fresh[0].digest: fresh[0].digest}, twins)
    material = together(original(), Captures(tuple(fresh), tuple(older), ()), copies=copies)
    trained = used(material, "train") | used(material, "validation")
    assert fresh[0].digest in {row.digest for row in material.fresh}, "it is judged on instead"
    assert not trained & {fresh[0].digest, older[0].digest, older[1].digest}
    assert {one.digest for one in older[2:]} <= trained
    assert material.left_out["older captures that are near-duplicates of held-out images"] == 1
    assert material.left_out["older captures that are near-duplicates of one that is judged on"] == 1


def test_what_the_champion_was_trained_on_is_not_judged_on_for_being_like_a_held_out_image() -> None:
    fresh = [capture(n, CLASSES[n % 2]) for n in range(20)]
    pinned = {fresh[0].digest: Pinned("a", "train", "capture")}
    material = together(
        original(), fresh_only(*fresh), pinned=pinned, copies=NearCopies({}, frozenset({fresh[0].digest}))
    )
    assert fresh[0].digest not in {row.digest for row in (*material.images.rows, *material.fresh, *material.old)}


def test_near_duplicates_are_found_among_captures_and_held_out_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def row(name: str, image: Image.Image, **options: Any) -> Row:
        path = tmp_path / name
        image.save(path, **options)
        return Row(str(path), "a", sha256(path.read_bytes()), "train")

    def scene() -> Image.Image:
        small = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
        return small.resize((96, 96), Image.Resampling.BICUBIC)

    one, other, known = scene(), scene(), scene()
    captures = [
        row("one.png", one),
        row("again.jpg", one, quality=80),
        row("small.png", one.resize((70, 70))),
        row("other.png", other),
        row("known.jpg", known, quality=70),
        row("broken.jpg", other),
    ]
    Path(captures[-1].location).write_bytes(b"changed since")
    learnt = scene()
    captures.append(row("learnt.jpg", learnt, quality=70))
    rows = (replace(row("held-out.png", known), split="test"), row("trained.png", learnt))
    originals = LabelledImages(
        "/data", CLASSES, rows, (),
        thumbnails={each.digest: glance(Path(each.location).read_bytes(), ImageLimits()).thumbnail for each in rows},
    )  # fmt: skip
    found = near_copies(captures, originals, ImageLimits())
    assert {captures[at].digest: captures[0].digest for at in range(3)} == dict(found.groups)
    assert found.of_held_out == {captures[4].digest}
    assert found.of_trained == {captures[6].digest}
    assert near_copies([], LabelledImages("/data", CLASSES, (), ()), ImageLimits()) == NearCopies()


def test_nothing_like_an_image_that_was_trained_on_is_judged_on() -> None:
    fresh = [capture(n, CLASSES[n % 2]) for n in range(40)]
    older = [capture(n, CLASSES[n % 2]) for n in range(100, 110)]
    # The first is like an original image, the second like an older capture that the champion was trained on.
    pinned = {older[0].digest: Pinned("a", "train", "capture")}
    groups = {older[0].digest: older[0].digest, fresh[1].digest: older[0].digest}
    copies = NearCopies(groups, of_trained=frozenset({fresh[0].digest}))
    for seed in range(8):
        material = together(
            original(), Captures(tuple(fresh), tuple(older), ()), pinned=pinned, copies=copies, holdout=0.9, seed=seed
        )
        trained = used(material, "train") | used(material, "validation")
        assert {fresh[0].digest, fresh[1].digest, older[0].digest} <= trained
        assert len(material.fresh) > 30
