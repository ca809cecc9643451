"""What a worker begins before its slow imports; imported first by service/app.py.

The inference process takes as long to start as the rest of the imports, so the two go on at the same time.
"""

from __future__ import annotations

import gc
from typing import Final

import bentoml

from perennial.settings import load_settings
from service.inference import Inference, threads_for

settings: Final = load_settings()


def _begin() -> Inference | None:
    if bentoml.server_context.worker_index is None:  # imported by something else than a worker, such as a build
        return None
    gc.disable()  # nothing of what is imported is garbage: an eighth of the time. `finish` turns it on again.
    return Inference(settings.serve, threads_for(settings.serve))


inference: Final = _begin()


def finish() -> None:
    """Collect garbage again, and never look at what is there by now, which stays for good: going over all of it
    stopped the event loop for a tenth of a second."""
    gc.freeze()
    gc.enable()
