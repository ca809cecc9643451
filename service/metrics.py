"""The service's Prometheus metrics. BentoML serves them at `/metrics`, summed over its workers.

Labels are bounded: never an id, a path or a digest.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import prometheus_client
import prometheus_client.multiprocess
from prometheus_client import Counter, Gauge, Histogram

from perennial.errors import Overloaded
from service.gathering import Flushing, GatheredCounter, GatheredHistogram, GatheredHistograms

#: Of `perennial_requests_total`: what has no route of ours.
OTHER: Final = "other"

requests: Final = GatheredCounter(
    Counter(
        "perennial_requests",
        "Requests answered, by the pattern of the route (`other`: none of them) and by status; 0 where the client left "
        "before its answer. Every request is in it, those that are refused at the edge too.",
        ["route", "status"],
    )
)
request_seconds: Final = GatheredHistograms(
    Histogram(
        "perennial_request_seconds",
        "Time from a request's header to the end of its answer. What is refused (4xx, 503) is counted in "
        "`perennial_requests_total` alone: it would make the others look quick.",
        ["route"],
        buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0, 15.0, 30.0),
    )
)
predictions: Final = GatheredCounter(
    Counter("perennial_predictions", "Predictions answered and recorded.", ["label", "model_version"])
)
rejected: Final = GatheredCounter(
    Counter("perennial_rejected", "Images and calls refused, by the slug of the problem.", ["reason"])
)
confidence: Final = GatheredHistogram(
    Histogram(
        "perennial_confidence",
        "Confidence of the predictions.",
        buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
    )
)
stage_seconds: Final = Histogram(
    "perennial_stage_seconds",
    "Time of one image in each stage: queue (waiting to be read, then for a thread), decode, infer, record (until it "
    "is safe on disk).",
    ["stage"],
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0, 15.0),
)
queue_seconds: Final = GatheredHistogram(stage_seconds.labels("queue"))
decode_seconds: Final = GatheredHistogram(stage_seconds.labels("decode"))
infer_seconds: Final = GatheredHistogram(stage_seconds.labels("infer"))
record_seconds: Final = GatheredHistogram(stage_seconds.labels("record"))
#: Started by the service; `flushing.flush()` brings what was gathered up to date.
flushing: Final = Flushing(
    requests,
    request_seconds,
    predictions,
    rejected,
    confidence,
    queue_seconds,
    decode_seconds,
    infer_seconds,
    record_seconds,
)
batch_images: Final = Histogram(
    "perennial_batch_images",
    "Images in one inference, where they are gathered for a GPU.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
# The client's Info type does not work across processes; this is a gauge of 1 instead.
live_model: Final = Gauge(
    "perennial_live_model_info",
    "1 for each version that a worker serves, in the precision and on the runtime that it is served.",
    ["version", "precision", "runtime"],
    multiprocess_mode="livemax",
)
swaps: Final = Counter(
    "perennial_swaps", "Changes of the live model: `done`, or `failed` once a failed version.", ["outcome"]
)
rollout_share: Final = Gauge(
    "perennial_rollout_share",
    "Share of the traffic that a challenger answers while it is rolled out; 0 in the shadow and afterwards.",
    ["version"],
    multiprocess_mode="livemax",
)
shadow: Final = Counter(
    "perennial_shadow",
    "Images that a challenger was to score beside the champion: `agreed`, `differed`, `failed` (in a canary, too), "
    "`dropped` (the service had better things to do), `lost` (the inference process ended meanwhile).",
    ["outcome"],
)
queue_images: Final = Gauge(
    "perennial_queue_images", "Images that are being worked on or wait.", multiprocess_mode="livesum"
)
queue_limit: Final = Gauge(
    "perennial_queue_limit",
    "Most images that may be worked on or wait, over all workers (`serve.max_queue` each); past it the answer is 503.",
    multiprocess_mode="livesum",
)
disk_free: Final = Gauge(
    "perennial_disk_free_bytes", "Room left on the disk of the journal.", multiprocess_mode="livemax"
)
disk_min_free: Final = Gauge(
    "perennial_disk_min_free_bytes",
    "Room that is kept free there (`serve.min_free_bytes`): with less, predictions are answered with 503; captures end "
    "at twice this.",
    multiprocess_mode="livemax",
)
behind: Final = Gauge(
    "perennial_recorder_behind_seconds",
    "How long ago the ledger last held every answered prediction; of the worker that is furthest behind.",
    multiprocess_mode="livemax",
)
pending_rows: Final = Gauge(
    "perennial_recorder_pending_rows",
    "Answered predictions that wait on local disk for the ledger.",
    multiprocess_mode="livesum",
)
refused_rows: Final = Counter(
    "perennial_recorder_refused_rows", "Predictions the ledger does not take; they are kept in refused.jsonl."
)
pending_captures: Final = Gauge(
    "perennial_recorder_pending_captures",
    "Captured images that wait on local disk for the storage.",
    multiprocess_mode="livesum",
)
captures: Final = Counter(
    "perennial_captures",
    "Captured images: `stored`, `known` (the same bytes are kept already), `failed` (an attempt to store one; it is "
    "tried again), `dropped` (no room to wait in).",
    ["outcome"],
)
feedback: Final = Counter(
    "perennial_feedback", "Labels received: `accepted`, `kept`, `unknown_prediction`, `unknown_label`.", ["outcome"]
)
inference_restarts: Final = Counter(
    "perennial_inference_restarts", "Times that the process that decodes and infers ended and was started again."
)
access_log_dropped: Final = Counter(
    "perennial_access_log_dropped", "Lines of the access log that were not written: the disk or the reader is too slow."
)

# A rate or an increase sees nothing of a series that begins with its first fault.
for _outcome in ("done", "failed"):
    swaps.labels(_outcome)
for _outcome in ("stored", "known", "failed", "dropped"):
    captures.labels(_outcome)
for _outcome in ("accepted", "kept", "unknown_prediction", "unknown_label"):
    feedback.labels(_outcome)
for _outcome in ("agreed", "differed", "failed", "dropped", "lost"):
    shadow.labels(_outcome)
rejected.begin(Overloaded.slug)

_LIVE_GAUGE: Final = re.compile(r"gauge_live\w+_(\d+)\.db$")


def answered(route: str | None, status: int | None, seconds: float) -> None:
    """Count one request; `route` is None where there is none of ours, `status` where the client did not wait."""
    requests.add((route or OTHER, status or 0))
    if status is not None and (status < 400 or (status >= 500 and status != 503)):
        request_seconds.observe((route or OTHER, seconds))


def expect(route: str) -> None:
    """Show the counts of a route that matters before there are any."""
    for status in (200, 500, 503, 504):
        requests.begin(route, status)


def free_bytes(folder: Path) -> int:
    """Room left on the disk of a folder; none where it cannot be asked, for then it takes nothing either."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def forget_dead_workers() -> None:
    """Drop the live gauges of workers that were killed: nobody else does, and their values would stay for ever."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    for path in Path(folder).iterdir():
        found = _LIVE_GAUGE.search(path.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            prometheus_client.multiprocess.mark_process_dead(int(found[1]), folder)  # type: ignore[no-untyped-call]
