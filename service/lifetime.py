"""A worker does not outlive its server: one whose server was killed would keep the port, and nobody could stop it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

from service.problems import logger

_LOOK_SECONDS: Final = 1.0


def end_with_parent() -> None:
    """Watch the parent process from a thread; when it is gone, stop this one as SIGTERM would."""
    parent = os.getppid()

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(_LOOK_SECONDS)
        logger.warning("the server process is gone; this worker stops")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
