"""The serving benchmark's arithmetic, and its load against a real server."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import closed_loop, long_runs, material, open_loop, plot, results, wrk
from benchmarks.serving.results import Measurement


def rates(stack: str, *values: float, image: str = "640x480", clients: int = 32) -> list[Measurement]:
    return [
        Measurement(stack, image, "closed", clients, "throughput", value, "requests/s", repeat)
        for repeat, value in enumerate(values)
    ]


def test_goals_are_judged_on_medians_and_the_better_number_of_threads() -> None:
    rows = [*rates("perennial", 80, 85, 900), *rates("limit", 90, clients=2), *rates("limit", 100, clients=3)]
    (verdict,) = results.verdicts(rows)
    assert verdict.measured == pytest.approx(0.85)
    assert verdict.met


def test_a_point_with_a_bad_answer_counts_for_nothing() -> None:
    rows = rates("perennial", 100, 9000)
    rows.append(Measurement("perennial", "640x480", "closed", 32, "errors", 7, "requests", 1))
    assert results.throughput(results.medians(rows), "perennial", "640x480", 32) == 100
    assert [row.value for row in results.invalid(rows)] == [7]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows, about = rates("perennial", 1.5, 2.25), {"hardware": "two cores: fast", "photos": "real"}
    results.write(rows, about, tmp_path / "results" / "serving.csv")
    assert results.read(tmp_path / "results" / "serving.csv") == (rows, about)


def test_the_picture_shows_every_stack_and_is_the_same_each_time(tmp_path: Path) -> None:
    names = ("limit", "perennial", "perennial_capture", "fastapi", "bentoml", "litserve")
    rows = [row for image in ("640x480", "4000x3000") for name in names for row in rates(name, 5.0, 7.0, image=image)]
    rows += [
        Measurement("perennial", "640x480", f"open {share}%", 0, metric, share * 1.5, "ms", 0)
        for share in (50, 70, 90)
        for metric in ("latency_p50", "latency_p99", "latency_p999")
    ]
    for name in ("one.svg", "two.svg"):
        plot.draw(rows, {"hardware": "two cores"}, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text("utf-8")
    assert drawn == (tmp_path / "two.svg").read_text("utf-8")
    assert all(text in drawn for text in ("BentoML", "LitServe", "FastAPI", "4000x3000", "p99.9", "90%"))


def test_a_slow_server_is_measured_longer() -> None:
    assert closed_loop.duration(5, clients=32, rate=1000) == 5
    assert closed_loop.duration(5, clients=32, rate=8) == 16
    assert closed_loop.duration(5, clients=32, rate=0) == 30


def test_stage_times_are_read_from_the_metrics() -> None:
    text = (
        'perennial_stage_seconds_sum{service_name="p",stage="decode"} 1.5\n'
        'perennial_stage_seconds_bucket{service_name="p",stage="decode",le="1.0"} 3.0\n'
        'perennial_stage_seconds_count{service_name="p",stage="decode"} 3.0\n'
    )
    assert closed_loop.parse_stages(text) == {"decode": (1.5, 3.0)}


def test_growth_of_memory_leaves_out_the_warm_up() -> None:
    looks = [(number * 1000, 200.0 + 2 * number if number >= 10 else 50.0) for number in range(1, 51)]
    assert long_runs.slope(looks) == pytest.approx(200.0)


def test_arrivals_are_poisson_at_the_rate_asked_for() -> None:
    times = np.array(open_loop.arrivals(200.0, 100.0, seed=1))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert np.diff(times).std() == pytest.approx(1 / 200, rel=0.05)
    assert times.max() < 100


def test_a_jpeg_comes_near_the_size_asked_for() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    assert len(material.jpeg_of(photo, 53_000)) == pytest.approx(53_000, rel=0.1)


class Recorder(ThreadingHTTPServer):
    """Keeps what it is sent; stalls once, to show what a closed loop would not see."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.kinds: set[str] = set()
        self.busy = threading.Lock()
        self.stall = 0.0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.busy:
            self.server.bodies.append(body)
            self.server.kinds.add(self.headers["Content-Type"])
            if len(self.server.bodies) == 1:
                threading.Event().wait(self.server.stall)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def bodies(tmp_path: Path) -> material.Bodies:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "list").write_text("".join(f"{tmp_path / name}\n" for name in ("one", "two")))
    return material.Bodies(tmp_path / "list", "image/jpeg")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_every_body_and_each_only_once_with_a_mark(recorder: Recorder, bodies: material.Bodies) -> None:
    url = f"http://127.0.0.1:{recorder.server_port}/predict"
    load = wrk.run(url, bodies, clients=4, seconds=1)
    assert (load.errors, set(recorder.bodies), recorder.kinds) == (0, {b"one", b"two"}, {"image/jpeg"})
    recorder.bodies.clear()
    wrk.run(url, bodies, clients=4, seconds=1, mark="mark")
    assert len(recorder.bodies) > 10
    assert len(set(recorder.bodies)) == len(recorder.bodies)


def test_a_stall_counts_against_every_request_that_was_due_in_it(recorder: Recorder, bodies: material.Bodies) -> None:
    recorder.stall = 0.5
    ready = open_loop.requests(f"http://127.0.0.1:{recorder.server_port}/predict", bodies)

    async def load() -> open_loop.Tally:
        generator = open_loop.Generator("127.0.0.1", recorder.server_port)
        await generator.run([(number / 100, ready[number % 2]) for number in range(100)], connections=2)
        return generator.tally

    tally = asyncio.run(load())
    assert (len(tally.latency), tally.refused, tally.broken) == (100, 0, 0)
    # Half of a second's requests were due while the server stood still; one connection alone would show one slow one.
    assert sum(latency > 0.05 for latency in tally.latency) >= 40
