"""The service's Prometheus metrics. BentoML serves them at `/metrics`, summed over its workers.

Labels are bounded: never an id, a path or a digest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import prometheus_client
import prometheus_client.multiprocess
from prometheus_client import Counter, Gauge, Histogram

from service.gathering import Flushing, GatheredCounter, GatheredHistogram

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
    predictions, rejected, confidence, queue_seconds, decode_seconds, infer_seconds, record_seconds
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

_LIVE_GAUGE: Final = re.compile(r"gauge_live\w+_(\d+)\.db$")


def forget_dead_workers() -> None:
    """Drop the live gauges of workers that were killed: nobody else does, and their values would stay for ever."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    for path in Path(folder).iterdir():
        found = _LIVE_GAUGE.search(path.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            prometheus_client.multiprocess.mark_process_dead(int(found[1]), folder)  # type: ignore[no-untyped-call]
