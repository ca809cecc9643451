"""What goes wrong around a retrain: full disks, images that are gone, a graph that is not what it says. Each is said,
the champion stays live, nothing half done is left, and the next run finishes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bentoml
import pytest

from perennial import retention
from perennial.bundle import Bundle, fetch_bundle
from perennial.errors import DiskFull, InvalidBundle
from perennial.ledger import EventKind, events, models
from perennial.settings_sections import RetentionSettings
from tests.training.retrain_world import World, truth
from tests.training.test_retrain import copy_of
from training import challenger as making
from training.fit import Fitted
from training.pixels import new_file
from training.publish import tag_of

KILOBYTE, MEGABYTE = 2**10, 2**20

# --- full disks ------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """A small file system of its own."""

    place: Path

    def make_room(self) -> None:
        size = shutil.disk_usage(self.place).total + 64 * MEGABYTE
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], Disk]]:
    """Puts a folder on a disk with room for so many bytes more than what is in it."""
    mounted: list[Path] = []

    def mount(place: Path, room: int) -> Disk:
        place.mkdir(parents=True, exist_ok=True)
        aside = tmp_path / f"aside-{len(mounted)}"
        shutil.copytree(place, aside)
        held = sum(-(-path.stat().st_size // 4096) * 4096 for path in place.rglob("*") if path.is_file())
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={held + room}", "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        shutil.copytree(aside, place, dirs_exist_ok=True)
        return Disk(place)

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def make_at_once(challenger: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of this one stands for what training would make."""
    monkeypatch.setattr(making, "fit", lambda _, bundles, **__: Fitted(copy_of(challenger, bundles), 0.0))


@pytest.fixture
def world(world: World) -> World:
    """Ways to weigh rows are compared elsewhere."""
    retrain = world.settings.retrain.model_copy(update={"candidates": ["recent_weighted"]})
    world.settings = world.settings.model_copy(update={"retrain": retrain})
    return world


def bundles_that_verify(world: World) -> list[str]:
    """The versions that the ledger names, each fetched and verified byte for byte."""
    return [
        fetch_bundle(model.bundle_url, model.digest, world.storage, world.settings.cache_path).manifest.version
        for model in models.all_of(world.engine, "default")
    ]


@pytest.mark.parametrize(
    ("folder", "room", "trained"),
    [
        pytest.param("cache/embeddings", 300 * KILOBYTE, False, id="the feature cache"),
        pytest.param("models", MEGABYTE, True, id="the graph"),
        pytest.param("models", 5 * MEGABYTE, False, id="the bundle"),
        pytest.param("storage/bundles", MEGABYTE, False, id="the storage"),
        pytest.param("the model store", 2 * MEGABYTE, False, id="the model store"),
    ],
)
def test_a_disk_that_fills_is_named_and_with_room_the_next_run_finishes(
    world: World,
    home: Path,
    tmp_path: Path,
    small_disk: Callable[[Path, int], Disk],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    room: int,
    trained: bool,
) -> None:
    champion = world.champion.manifest.version
    world.serve(70, inverted=True, relabel=truth)
    if not trained:
        make_at_once(world.champion, monkeypatch)
    if folder.startswith("cache"):
        (home / "cache").unlink()  # the one that all tests share
    # BentoML's store stays where it was when this process first asked for it.
    store = Path(bentoml.models.get(tag_of(world.champion)).path).parents[1]
    monkeypatch.setenv("BENTOML_HOME", str(store.parent))
    disk = small_disk(store if folder == "the model store" else home / folder, room)
    before = {str(model.tag) for model in bentoml.models.list()}
    world.request()

    with pytest.raises(DiskFull, match=r"free now: .* MB at .*Make room there") as caught:
        world.retrain()

    assert caught.value.exit_code == 1
    assert str(disk.place) in str(caught.value)
    assert world.kinds()[-2:] == ["retrain_started", "retrain_failed"]
    failed = events.last(world.engine, "default", [EventKind.RETRAIN_FAILED])
    assert failed is not None
    assert failed.detail["error"] == "DiskFull"
    assert failed.detail["reason"] == str(caught.value)
    assert world.live == champion
    assert bundles_that_verify(world) == [champion]
    assert list((home / "models").glob("**/*")) == []
    stored = [path for path in (home / "storage" / "bundles").rglob("*") if path.is_file()]
    assert {path.parent.name for path in stored} == {champion}
    assert {str(model.tag) for model in bentoml.models.list()} == before

    disk.make_room()
    make_at_once(world.champion, monkeypatch)
    world.request()
    result = world.retrain()
    assert result.gate is not None
    assert world.kinds()[-1] == ("deployed" if result.outcome == "promoted" else "gate_refused")
    assert sorted(bundles_that_verify(world)) == sorted([champion, result.version])


def test_a_file_for_pixels_takes_its_room_at_once(tmp_path: Path, small_disk: Callable[[Path, int], Disk]) -> None:
    disk = small_disk(tmp_path / "small", MEGABYTE)
    with pytest.raises(OSError, match="No space left"):
        new_file(disk.place / "pixels.npy", (20, 256, 256, 3))
    (disk.place / "pixels.npy").unlink()
    pixels = new_file(disk.place / "pixels.npy", (2, 256, 256, 3))
    pixels[:] = 7
    assert pixels.shape == (2, 256, 256, 3)


# --- images that are gone, and a graph that is not what it says ---------------------------------------------


def test_labels_of_images_that_retention_removed_are_counted_and_said(world: World) -> None:
    gone, kept = world.serve(2, inverted=True), world.serve(30, inverted=True, relabel=truth)
    later = datetime.now(UTC) + timedelta(days=8)
    retention.prune(
        world.engine, world.storage, RetentionSettings(images_days=7.0, labelled_days=365.0), window=100, now=later
    )
    world.label(gone, truth)
    world.request()
    result = world.retrain()
    assert (result.outcome, result.labels) == ("waiting", 30)
    assert {skip.location for skip in result.skipped} == {f"prediction {row.id}" for row in gone}
    assert {skip.reason for skip in result.skipped} == {
        "its image is not kept: it was never captured (serve.capture), or retention removed it (retention)"
    }
    assert "2 could not be used, such as prediction" in result.why
    assert all(row.image_url and world.storage.exists(world.storage.key_of(row.image_url)) for row in kept)


def test_captures_that_are_gone_or_corrupt_are_left_out_and_the_others_go_to_the_gate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world.serve(70, inverted=True, relabel=truth)
    for row, damage in zip(rows, (lambda path: path.unlink(), lambda path: path.write_bytes(b"")), strict=False):
        path = world.storage.local_path(world.storage.key_of(row.image_url or ""))
        assert path is not None
        damage(path)
    make_at_once(world.champion, monkeypatch)
    result = world.retrain(if_due=False)
    assert result.labels == 68
    assert {skip.location for skip in result.skipped} == {row.image_url for row in rows[:2]}
    assert result.gate is not None
    assert world.live == world.champion.manifest.version


def test_a_challenger_whose_graph_is_not_what_its_manifest_says_is_not_judged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(70, inverted=True, relabel=truth)
    classes = (*world.champion.manifest.classes, "zebra")
    wrong = Bundle(
        world.champion.path, world.champion.manifest.model_copy(update={"classes": classes}), world.champion.digest
    )
    make_at_once(wrong, monkeypatch)
    with pytest.raises(InvalidBundle, match=r"gives 3 probabilities .* there are 4"):
        world.retrain(if_due=False)
    assert world.kinds()[-2:] == ["retrain_started", "retrain_failed"]
    assert world.live == world.champion.manifest.version


def test_bytes_that_storage_changes_never_reach_the_gate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve(70, inverted=True, relabel=truth)
    make_at_once(world.champion, monkeypatch)
    write = type(world.storage).write

    def damaging(self: object, key: str, data: bytes) -> str:
        return write(world.storage, key, data[:-1] + bytes([data[-1] ^ 1]) if key.endswith(".onnx") else data)

    with monkeypatch.context() as patched:
        patched.setattr(type(world.storage), "write", damaging)
        with pytest.raises(InvalidBundle, match="is not what was written there"):
            world.retrain(if_due=False)
    assert world.kinds()[-2:] == ["retrain_started", "retrain_failed"]
    assert bundles_that_verify(world) == [world.champion.manifest.version]
    assert world.retrain(if_due=False).gate is not None
