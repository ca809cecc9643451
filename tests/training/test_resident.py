"""Many features need little memory: what is mapped is given back, and nothing is copied twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training import export, neighbours, probe, resident
from training.export import fit_whitening
from training.neighbours import neighbour_logits
from training.probe import linear_probe, log_loss
from training.resident import blocks, taken

Floats = NDArray[np.float32]

# In a process of its own: what other tests have left in memory would hide what grows here. Features are mapped as the
# cache maps them.
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from training.datasets import Row
from training.embedding_duplicates import embedding_duplicates
from training.export import fit_whitening
from training.resident import taken
from training.rungs import nearest, probe
from training.selection import select

rows, width, classes = 12_000, 1280, 7
random = np.random.default_rng(0)
labels = np.arange(rows) % classes
centres = 0.15 * random.normal(size=(classes, width)).astype(np.float32)
path = Path(sys.argv[1])
with path.open("wb") as file:
    for start in range(0, rows, 2000):
        some = random.standard_normal((2000, width), np.float32) + centres[labels[start : start + 2000]]
        file.write(np.maximum(some, 0, out=some).tobytes())
features = np.memmap(path, np.float32, "r", 0, (rows, width))
splits = random.choice(["train", "validation", "test"], rows, p=[0.7, 0.15, 0.15])
listed = [Row(f"/{at}", str(labels[at]), f"{at:064x}", str(splits[at])) for at in range(rows)]
selection = select(listed, labels.tolist(), {}, 0)

def resident(name):
    return 1024 * int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])

def grown(work):
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.process_time()
    result = work()
    return (resident("VmHWM") - before) / rows, time.process_time() - began, result

found = {}
*found["probe"], (trial, _) = grown(lambda: probe("p", features, labels, [1.0] * rows, selection, classes, 1))
*found["nearest"], near = grown(lambda: nearest(features, labels, selection, classes))
*found["duplicates"], pairs = grown(lambda: embedding_duplicates(features, listed, groups={}))
*found["whitening"], _ = grown(lambda: fit_whitening(taken(features, selection.learnt)))
apart, _, _ = grown(lambda: taken(features, np.arange(0, rows, 14)))
accuracy = {"probe": float(trial.right(labels).mean()), "nearest": float(near.right(labels).mean())}
print(json.dumps({"grown": found, "accuracy": accuracy, "pairs": len(pairs), "apart": apart}))
"""

#: Bytes a row that memory may grow by: the features of one are 5,120 bytes, of which seven in ten are trained on.
MOST_BYTES = 10_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a stretch of work")
def test_a_probe_of_many_images_grows_by_less_than_two_copies_of_their_features(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "features.f32")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert all(bytes_a_row < MOST_BYTES for bytes_a_row, _ in found["grown"].values()), found
    assert found["apart"] < MOST_BYTES / 4, found["apart"]  # rows far apart do not bring in all that lies between
    assert found["accuracy"]["probe"] > 0.9
    assert found["pairs"] == 0


# --- large features give what small ones do ---------------------------------------------------------------


def made_up(rows: int, width: int = 40, classes: int = 3, seed: int = 0) -> tuple[Floats, list[int]]:
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = np.random.default_rng(9).normal(size=(classes, width))
    found = np.maximum(0.6 * centres[labels] + random.normal(size=(rows, width)) + 1, 0)
    return found.astype(np.float32), labels.tolist()


def test_a_probe_of_large_features_is_that_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = made_up(600)
    other, truth = made_up(300, seed=1)
    weights = [2.0 if label == 0 else 1.0 for label in labels]
    small = linear_probe(features, labels, weights, other, truth, 3)
    monkeypatch.setattr(probe, "LARGE", 1000)
    monkeypatch.setattr(probe, "BLOCK", 100)
    monkeypatch.setattr(resident, "BLOCK", 100)
    before = features.copy()
    large = linear_probe(features, labels, weights, other, truth, 3)
    assert np.array_equal(features, before)
    assert large.penalty == small.penalty
    assert np.allclose(large.logits(other), small.logits(other), atol=2e-3)
    monkeypatch.setattr(probe, "_SAMPLED", 150)  # the penalty is looked for on these, then on all
    sampled = linear_probe(features, labels, weights, other, truth, 3, overwrite=True)
    assert log_loss(sampled.logits(other), truth) <= 1.02 * log_loss(small.logits(other), truth)
    assert sampled.losses[sampled.penalty] == min(sampled.losses.values())
    assert 2 <= len(sampled.losses) < len(probe.GRID)  # not all of them were tried on all rows


def test_a_rare_class_is_in_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = made_up(600)
    labels[7] = 3
    monkeypatch.setattr(probe, "LARGE", 1000)
    monkeypatch.setattr(probe, "_SAMPLED", 50)
    found = linear_probe(features, labels, [1.0] * 600, *made_up(300, seed=1), 4)
    assert found.weight.shape == (4, 40)


def test_whitening_of_large_features_is_that_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = made_up(500)
    small = fit_whitening(features)
    monkeypatch.setattr(export, "LARGE", 1000)
    monkeypatch.setattr(resident, "BLOCK", 64)
    large = fit_whitening(features)
    assert np.allclose(large.centre, small.centre, atol=1e-5)
    # A direction's sign is a convention, and both have the same.
    assert np.allclose(large.components, small.components, atol=1e-4)


def test_neighbours_are_the_same_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = made_up(300)
    other, _ = made_up(80, seed=1)
    whole = neighbour_logits(features, labels, other, 3)
    monkeypatch.setattr(resident, "BLOCK", 37)
    monkeypatch.setattr(neighbours, "_AT_ONCE", 30)
    assert np.allclose(neighbour_logits(features, labels, other, 3), whole, atol=1e-6)
    at = np.arange(0, 300, 2)
    some = neighbour_logits(features, np.asarray(labels)[at].tolist(), other, 3, at=at)
    assert np.allclose(some, neighbour_logits(features[at], np.asarray(labels)[at].tolist(), other, 3), atol=1e-6)


def test_what_is_given_back_of_a_map_is_read_again(tmp_path: Path) -> None:
    features, _ = made_up(5000)
    path = tmp_path / "features.f32"
    features.tofile(path)
    mapped = np.memmap(path, np.float32, "r", 0, features.shape)
    at = np.random.default_rng(0).permutation(5000)[:3000]
    assert np.array_equal(taken(mapped, at), features[at])
    assert np.array_equal(np.concatenate([rows.copy() for _, rows in blocks(mapped)]), features)
    changed = np.memmap(path, np.float32, "c", 0, features.shape)  # changes to it are in memory alone
    changed[0] = 7
    taken(changed, at)
    assert (changed[0] == 7).all()
