"""The Evidently workspace: one project a model, one run a check, drawn over time by `perennial ui`.

Written file by file, in the layout of `evidently.ui.workspace.Workspace`: opening one of those reads every run in it,
which takes longer with each check.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Final

from monitoring.check_metrics import CheckAccuracy, CheckVerdict, DomainClassifier, DriftedColumns
from monitoring.quiet_evidently import quietly
from perennial.errors import WorkspaceUnavailable
from perennial.ids import new_id

with quietly():
    from evidently.core.report import Snapshot
    from evidently.legacy.utils import NumpyEncoder
    from evidently.sdk.models import DashboardModel, DashboardPanelPlot, DashboardTabModel, PanelMetric, ProjectModel
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel
    from evidently.ui.storage.local.base import DASHBOARD_FILE_NAME, PROJECT_FILE_NAME, SNAPSHOTS_DIR_NAME

_TAB: Final = "Checks"
#: Seconds after which a file that is still half written belongs to a check that was killed.
_ABANDONED: Final = 3600
#: A project's id follows from the model's name, so that two processes that begin one at once begin the same.
_PROJECTS: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "perennial.evidently")


def project_id(name: str) -> uuid.UUID:
    """The id of a model's project."""
    return uuid.uuid5(_PROJECTS, name)


def add_run(folder: Path, name: str, run: Snapshot, keep: int) -> Path:
    """Add a check's run, without its data, to the project of the model `name`; of older runs the newest are kept, so
    that there are `keep`. The project and its dashboard are written where they are not there, or of another version.

    Returns the file of the run.

    Raises:
        WorkspaceUnavailable: it cannot be written, or not in full; what was there before is whole.
    """
    try:
        project = folder / str(project_id(name))
        _put(project / PROJECT_FILE_NAME, _project(name).dict(), folder)
        _put(project / DASHBOARD_FILE_NAME, dashboard(name).dict(), folder)
        path: Path = project / SNAPSHOTS_DIR_NAME / f"{new_id()}.json"
        _put(path, _snapshot(run), folder)
        older = sorted(found for found in path.parent.glob("*.json") if found != path)
        for old in older[: max(0, len(older) + 1 - keep)]:  # the ids sort by time
            old.unlink(missing_ok=True)
        _sweep(folder)
    except Exception as error:  # Evidently raises its own kinds
        raise WorkspaceUnavailable(f"{folder} cannot be written: {error}") from error
    return path


def dashboard(name: str) -> DashboardModel:
    """The panels of a model's project. Their ids follow from their titles: the same panels are the same file."""
    panels = [
        bar_plot_panel(
            "Verdict",
            [_series(CheckVerdict, "{{label}}")],
            "One bar a check, in the colour of its verdict; click one for its report.",
            stacked=True,
        ),
        line_plot_panel(
            "Accuracy",
            [_series(CheckAccuracy, "{{label}}")],
            "By labels, where there are enough; estimated without; and in the reference.",
        ),
        line_plot_panel(
            "Drifted columns",
            [_series(DriftedColumns, "share of the tested columns", value_type="share")],
            "Properties, outputs and the predicted class; a column counts if it raised an alarm.",
            size="half",
        ),
        line_plot_panel(
            "Domain classifier",
            [
                _series(DomainClassifier, "AUC", label="auc"),
                _series(DomainClassifier, "AUC within classes", label="auc_within_classes"),
            ],
            "Can the window's embeddings be told from the reference's? .5 is not at all, 1 is always.",
            size="half",
        ),
    ]
    panels = [_with_id(panel, uuid.uuid5(project_id(name), panel.title)) for panel in panels]
    tab = DashboardTabModel(
        id=uuid.uuid5(project_id(name), f"tab {_TAB}"), title=_TAB, panels=[panel.id for panel in panels]
    )
    return DashboardModel(tabs=[tab], panels=panels)


def _snapshot(run: Snapshot) -> dict[str, Any]:
    """A run as it is kept: without the copy of each plot that a metric's result holds, which is half of it and which
    nothing reads again."""
    model = run.to_snapshot_model()
    document: dict[str, Any] = model.dict(exclude={"metric_results": {key: {"widget"} for key in model.metric_results}})
    return document


def _project(name: str) -> ProjectModel:
    return ProjectModel(id=project_id(name), name=name, description="The checks of `perennial monitor`.")


def _series(metric: Any, legend: str, **labels: str) -> PanelMetric:
    return PanelMetric(metric=metric.__get_type__(), metric_labels=labels, legend=legend)


def _with_id(panel: DashboardPanelPlot, identifier: uuid.UUID) -> DashboardPanelPlot:
    return panel.copy(update={"id": identifier})


def _put(path: Path, document: dict[str, Any], folder: Path) -> None:
    """Write a file whole, unless it holds the same. Until then it lies beside the workspace, which `perennial ui`
    watches: what is renamed within, it overlooks."""
    text = json.dumps(document, cls=NumpyEncoder)
    if path.is_file() and path.read_text("utf-8", errors="replace") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed checks left half written beside the workspace."""
    for left in folder.parent.glob(f".{folder.name}.*.json.*"):
        with contextlib.suppress(FileNotFoundError):  # another check has just finished it
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
