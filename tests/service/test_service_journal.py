"""The journal holds what was appended, whatever becomes of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perennial.errors import InvalidSettings, JournalFull
from service.journal import Journal

_LARGE = 2**20


def journal(folder: Path, **changes: int) -> Journal:
    return Journal(folder, **{"segment_bytes": _LARGE, "min_free_bytes": 0, **changes})


def drained(made: Journal, most_bytes: int = _LARGE) -> list[bytes]:
    found: list[bytes] = []
    while (batch := made.read(most_bytes)) is not None:
        found += batch.records
        made.acknowledge(batch)
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def test_records_come_in_order_in_batches_over_many_segments(tmp_path: Path) -> None:
    made = journal(tmp_path, segment_bytes=100)
    records = [f"record {index}".encode() * (index % 7) for index in range(100)]
    for record in records:
        made.append(record)
    assert made.pending == 100
    assert len(segments(tmp_path)) > 10
    assert drained(made, most_bytes=64) == records
    assert (made.pending, made.pending_bytes) == (0, 0)
    assert len(segments(tmp_path)) == 1
    made.close()
    assert segments(tmp_path) == []


def test_a_record_longer_than_a_batch_comes_alone(tmp_path: Path) -> None:
    made = journal(tmp_path)
    records = [b"a" * 10_000, b"b", b"c" * 5000]
    for record in records:
        made.append(record)
    assert drained(made, most_bytes=100) == records
    made.close()


def test_what_was_not_acknowledged_is_read_again_and_outlives_the_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from service.journal import Journal\n"
        "made = Journal(Path(sys.argv[1]), segment_bytes=1000, min_free_bytes=0)\n"
        "for index in range(50): made.append(b'%d' % index * 10)\n"
        "batch = made.read(100); made.acknowledge(batch); made.read(100)\n"
        "print(len(batch.records), flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 0 < int(done.stdout) < 50
    made = journal(tmp_path)
    found = drained(made)
    made.close()
    records = [b"%d" % index * 10 for index in range(50)]
    assert found == records[-len(found) :]
    assert len(found) >= 50 - int(done.stdout)


def test_a_torn_record_is_left_out_and_kept_aside(tmp_path: Path) -> None:
    made = journal(tmp_path)
    for record in (b"first", b"second"):
        made.append(record)
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    torn = tmp_path / "00000000000000000001-1-aaaaaa.journal"
    torn.write_bytes(whole[:-3])
    made.take_over()
    assert drained(made) == [b"first", b"first", b"second"]
    assert torn.with_suffix(".damaged").read_bytes() == whole[-len(b"second") - 8 : -3]
    made.close()


def test_the_segment_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    one, other = journal(tmp_path), journal(tmp_path)
    one.append(b"mine")
    other.take_over()
    assert drained(other) == []
    assert drained(one) == [b"mine"]
    one.close()
    other.close()


def test_appending_from_many_threads_tears_nothing(tmp_path: Path) -> None:
    made = journal(tmp_path, segment_bytes=5000)
    records = [os.urandom(index % 300) + b"%06d" % index for index in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(made.append, records))
    assert sorted(drained(made)) == sorted(records)
    made.close()


def test_a_full_disk_and_a_full_journal_refuse_and_keep_what_there_is(tmp_path: Path) -> None:
    made = journal(tmp_path / "disk", min_free_bytes=2**62)
    with pytest.raises(JournalFull, match="bytes left"):
        made.append(b"x")
    assert made.pending == 0
    made.close()
    made = journal(tmp_path / "bound", max_pending_bytes=100)
    made.append(b"x" * 200)
    with pytest.raises(JournalFull, match="wait"):
        made.append(b"y")
    assert drained(made) == [b"x" * 200]
    made.append(b"y")
    made.close()


def test_a_write_that_the_disk_cuts_short_leaves_no_half_record(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from perennial.errors import JournalFull\n"
        "from service.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "made = Journal(Path(sys.argv[1]), segment_bytes=10**6, min_free_bytes=0)\n"
        "made.append(b'a' * 100)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))\n"
        "try: made.append(b'b' * 100)\n"
        "except JournalFull as error: print(error)\n"
        "made.append(b'c' * 10)\n"
        "print(made.read(1000).records == [b'a' * 100, b'c' * 10])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "free some disk space" in done.stdout
    assert done.stdout.endswith("True\n")


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidSettings, match="home"):
        journal(tmp_path / "file" / "journal")
