"""The process that draws: `python -m monitoring.drawing_process FD`, started by `DrawingAside`.

It imports Evidently while the check that will need it still reads and compares. Orders and answers are pickled on a
socket that nobody else has; it ends when the check is gone.
"""

from __future__ import annotations

import gc
import importlib.util
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perennial.errors import DrawingFailed, WorkspaceUnavailable

if TYPE_CHECKING:
    from monitoring.drawing import Drawn


class DrawingAside:
    """Draws in a process of its own, which `start` or the first order starts."""

    def __init__(self) -> None:
        self._started: tuple[Connection, subprocess.Popen[bytes]] | None = None

    def start(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        """Let it import what it will need. Returns the way to it, and the process.

        Raises:
            ModuleNotFoundError: Evidently is not installed.
        """
        if importlib.util.find_spec("evidently") is None:
            raise ModuleNotFoundError("No module named 'evidently'", name="evidently")
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", "monitoring.drawing_process", str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._started = ours, process
        return self._started

    def html(self, drawn: Drawn) -> str:
        return str(self._ask("html", drawn))

    def keep(self, workspace: Path, name: str, most: int) -> None:
        self._ask("keep", workspace, name, most)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._started is not None:
            ours, process = self._started
            self._started = None
            ours.close()
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, order: str, *arguments: Any) -> Any:
        ours, process = self._started or self.start()
        try:
            ours.send((order, arguments))
            failure, answer = ours.recv()
        except (EOFError, OSError) as error:
            ours.close()  # if it lives, it ends now
            code = process.wait()
            raise DrawingFailed(f"the process that draws ended with {code}") from error
        if failure is not None:
            raise failure
        return answer


def _serve(theirs: Connection) -> None:
    """Do what is ordered until the other side is gone."""
    gc.disable()  # what imports make stays: looking through it for garbage takes a fifth of them
    from monitoring import check_metrics, report, workspace  # noqa: F401 - to be there when the first order comes
    from monitoring.drawing import DrawingHere

    gc.freeze()
    gc.enable()
    drawing = DrawingHere()
    while True:
        order, arguments = theirs.recv()
        try:
            theirs.send((None, getattr(drawing, order)(*arguments)))
        except WorkspaceUnavailable as error:
            theirs.send((error, None))
        except Exception as error:  # noqa: BLE001 - whatever Evidently raises, the check is not lost for it
            traceback.print_exc()
            theirs.send((DrawingFailed(f"{type(error).__name__}: {error}"), None))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the check, which ends this process
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the check is done with us, or gone
