from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training import feature_cache
from training.feature_cache import DamagedCache, FeatureCache

WIDTH = 20


def digests(count: int, first: int = 0) -> list[str]:
    return [hashlib.sha256(str(at).encode()).hexdigest() for at in range(first, first + count)]


def vectors(count: int, first: int = 0, width: int = WIDTH) -> feature_cache.Floats:
    return np.stack([np.random.default_rng(at).random(width, np.float32) for at in range(first, first + count)])


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    with FeatureCache(tmp_path / "cache", WIDTH) as opened:
        yield opened


def test_what_was_appended_is_found_again_in_any_order(cache: FeatureCache, tmp_path: Path) -> None:
    cache.append(digests(10), vectors(10))
    with FeatureCache(tmp_path / "cache", WIDTH) as other:
        found = other.find(digests(12))
        assert found.keys() == set(digests(10))
        backwards = other.gather([found[digest] for digest in reversed(digests(10))])
        repeated = other.gather([found[digests(1)[0]]] * 3)
    assert np.array_equal(backwards, vectors(10)[::-1])
    assert np.array_equal(repeated, np.repeat(vectors(1), 3, axis=0))


def test_neighbours_on_disk_are_mapped_and_stay_readable_when_the_cache_is_closed(tmp_path: Path) -> None:
    with FeatureCache(tmp_path, WIDTH) as cache:
        found = cache.append(digests(10), vectors(10))
        some = cache.gather([found[digest] for digest in digests(4, first=3)])
    assert isinstance(some, np.memmap)
    assert np.array_equal(some, vectors(4, first=3))
    with pytest.raises(ValueError, match="read-only"):
        some[0] = 1


def test_much_that_is_scattered_is_gathered_in_a_file_that_leaves_nothing_behind(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_RESIDENT", 100)
    found = cache.append(digests(10), vectors(10))
    before = set(tmp_path.rglob("*"))
    some = cache.gather([found[digest] for digest in digests(10)[::2]])
    assert isinstance(some, np.memmap)
    assert np.array_equal(some, vectors(10)[::2])
    assert set(tmp_path.rglob("*")) == before


def test_a_vector_is_kept_once(cache: FeatureCache, tmp_path: Path) -> None:
    first = cache.append(digests(5), vectors(5))
    again = cache.append(digests(8), vectors(8) + 1)
    assert {digest: again[digest] for digest in first} == first
    assert (tmp_path / "cache" / "vectors.f32").stat().st_size == 8 * WIDTH * 4
    assert np.array_equal(cache.gather([again[digests(1)[0]]]), vectors(1))


def test_vectors_of_another_width_are_refused(cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match=r"not float32 \[3, 20\]"):
        cache.append(digests(3), vectors(3, width=21))


def test_a_torn_tail_is_never_read_and_written_over(tmp_path: Path) -> None:
    with FeatureCache(tmp_path, WIDTH) as cache:
        cache.append(digests(3), vectors(3))
    with (tmp_path / "vectors.f32").open("ab") as file:
        file.write(b"half a row")
    with FeatureCache(tmp_path, WIDTH) as cache:
        found = cache.append(digests(2, first=3), vectors(2, first=3)) | cache.find(digests(3))
        assert np.array_equal(cache.gather([found[digest] for digest in digests(5)]), vectors(5))


def test_a_process_that_is_killed_while_it_writes_leaves_whole_rows(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=append_until_killed, args=(tmp_path,))
    child.start()
    while not (tmp_path / "vectors.f32").exists() or (tmp_path / "vectors.f32").stat().st_size < 40 * WIDTH * 4:
        assert child.is_alive()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with FeatureCache(tmp_path, WIDTH) as cache:
        found = cache.find(digests(10_000))
        assert len(found) >= 20
        assert found.keys() == set(digests(len(found)))
        kept = cache.gather([found[digest] for digest in digests(len(found))])
        assert np.array_equal(kept, vectors(len(found)))


def append_until_killed(folder: Path) -> None:
    with FeatureCache(folder, WIDTH) as cache:
        for first in range(0, 10_000, 5):
            cache.append(digests(5, first), vectors(5, first))


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(append_some, [tmp_path] * 4, range(0, 80, 20)))
    with FeatureCache(tmp_path, WIDTH) as cache:
        found = cache.find(digests(110))
        assert np.array_equal(cache.gather([found[digest] for digest in digests(110)]), vectors(110))
    assert (tmp_path / "vectors.f32").stat().st_size == 110 * WIDTH * 4


def append_some(folder: Path, first: int) -> None:
    with FeatureCache(folder, WIDTH) as cache:
        for at in range(first, first + 50, 5):  # the others append some of the same
            cache.append(digests(5, at), vectors(5, at))


@pytest.mark.parametrize("how", ["flipped", "cut", "index"])
def test_damage_is_noticed_said_and_the_cache_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with FeatureCache(tmp_path, WIDTH) as cache:
        cache.append(digests(10), vectors(10))
    path = tmp_path / "vectors.f32"
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[100] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        (tmp_path / "index.sqlite").write_bytes(b"scribbled over " * 600)
    with caplog.at_level(logging.WARNING), FeatureCache(tmp_path, WIDTH) as cache:
        found = cache.find(digests(10))
        if how == "flipped":
            with pytest.raises(DamagedCache, match="row 1 is not what was written"):
                cache.gather(list(found.values()))
        assert not cache.find(digests(10))
        found = cache.append(digests(10), vectors(10))
        assert np.array_equal(cache.gather(list(found.values())), vectors(10))
    assert "is damaged" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("scattered", [False, True])
def test_a_hundred_megabytes_of_vectors_need_little_memory(tmp_path: Path, scattered: bool) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        grown, found = pool.submit(fill_and_gather, tmp_path, 20_000, 1280, scattered).result()
    assert (tmp_path / "vectors.f32").stat().st_size == 20_000 * 1280 * 4
    assert grown < 60
    expected = np.arange(20_000, dtype=np.float64)
    assert np.array_equal(found, expected[::-1] if scattered else expected)


def fill_and_gather(folder: Path, count: int, width: int, scattered: bool) -> tuple[float, np.ndarray]:
    """How many MiB the process grew by, and the first number of each vector."""
    feature_cache._RESIDENT = 2**20  # type: ignore[misc]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = digests(count)
    with FeatureCache(folder, width) as cache:
        for first in range(0, count, 500):
            block = np.repeat(np.arange(first, first + 500, dtype=np.float32)[:, None], width, axis=1)
            cache.append(names[first : first + 500], block)
        found = cache.find(names)
        mapped = cache.gather([found[name] for name in (reversed(names) if scattered else names)])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return grown, np.array(mapped[:, 0], np.float64)
