"""The no-HTTP limit: decode, resize and infer in threads, nothing else. A process of its own, as a server is.

Usage:

    python -m benchmarks.serving.limit --bundle FOLDER --listing FILE --threads 2 --seconds 5
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

import numpy as np

from perennial.bundle import open_bundle
from perennial.graph import Graph
from perennial.images import prepare
from perennial.settings_sections import ServeSettings
from service.precision import choose

_WARM_UP = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--listing", type=Path, required=True, help="a file that names JPEG files, one a line")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    chosen = parser.parse_args()
    images = [Path(line).read_bytes() for line in chosen.listing.read_text("utf-8").splitlines()]
    bundle = open_bundle(chosen.bundle)
    runtime, precision = choose(bundle.manifest, ServeSettings())  # what the service comes to by default
    graph = Graph(bundle.graph_in(precision), threads=chosen.threads, precision=precision, runtime=runtime)
    rule = bundle.manifest.input
    counts = [0] * chosen.threads
    stop = threading.Event()

    def work(thread: int) -> None:
        turn = thread
        while not stop.is_set():
            graph.run(prepare(images[turn % len(images)], rule).pixels[np.newaxis])
            counts[thread] += 1
            turn += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(chosen.threads)]
    for thread in threads:
        thread.start()
    time.sleep(_WARM_UP)
    before, began, used = sum(counts), time.perf_counter(), os.times()
    time.sleep(chosen.seconds)
    done, seconds, after = sum(counts) - before, time.perf_counter() - began, os.times()
    stop.set()
    for thread in threads:
        thread.join()
    cpu = after.user + after.system - used.user - used.system
    print(json.dumps({"images": done, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
