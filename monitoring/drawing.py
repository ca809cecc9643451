"""Draw a check by Evidently: its report as HTML, and its run in the workspace.

Importing Evidently takes longer than everything else a check does, and needs some 280 MB. So nothing here imports it
until there is something to draw, and `drawing_process.py` does it in a process of its own, meanwhile: what it is told
is columns and numbers, for which it need not import what reads and compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from evidently.core.report import Snapshot


@dataclass(frozen=True, slots=True)
class Side:
    """The rows of a window, or of what it was compared with: some of the tested columns by name, NaN where a row was
    left out or has no finite value; the predicted class and the label of each row, None where there is none."""

    columns: Mapping[str, NDArray[Any]]
    predicted: tuple[str | None, ...]
    labels: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a check came to. `verdicts` has 1 for the one that was given and 0 for all others; `drifted` has how many
    columns `drifted` of those `tested`; `accuracies` those that are known, by their source; `separations` what the
    domain classifier found. What could not be computed is left out."""

    verdicts: Mapping[str, float] = field(default_factory=dict)
    drifted: Mapping[str, int] = field(default_factory=dict)
    accuracies: Mapping[str, float] = field(default_factory=dict)
    separations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is to be drawn. `alpha` is of the tests of all columns together, of which there were `tested`, drawn or not;
    accuracy is drawn where there are `least_labels`."""

    reference: Side
    window: Side
    numbers: Numbers
    tested: int
    alpha: float
    least_labels: int
    at: datetime
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


class Drawing(Protocol):
    """Draws one check at a time."""

    def html(self, drawn: Drawn) -> str:
        """Evidently's report, a page of its own.

        Raises:
            DrawingFailed: there is none; that is no reason to lose the check.
        """

    def keep(self, workspace: Path, name: str, most: int) -> None:
        """Add the run whose report was drawn last to the workspace's project of the model `name`, which keeps `most`.

        Raises:
            WorkspaceUnavailable: it cannot be written; what was there before is whole.
            DrawingFailed: nobody is there to do it.
        """


class DrawingHere:
    """Draws in this process."""

    def __init__(self) -> None:
        self._run: Snapshot | None = None

    def html(self, drawn: Drawn) -> str:
        from monitoring.report import render

        self._run = render(drawn)
        html: str = self._run.get_html_str(as_iframe=False)
        return html

    def keep(self, workspace: Path, name: str, most: int) -> None:
        from monitoring.workspace import add_run

        if self._run is None:
            raise ValueError("nothing has been drawn")
        add_run(workspace, name, self._run, most)
