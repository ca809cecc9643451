"""`perennial status`: what is live, what came in, what the monitor says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import console
from perennial.errors import InvalidParameter

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.settings import Settings

_EVENTS: Final = 5
_LOOK_SECONDS: Final = 2.0
_NEW_LABELS: Final = 5


def status(
    seconds: Annotated[
        float | None,
        typer.Argument(metavar="[SECONDS]", min=0.2, help="With --watch: between two looks.", show_default=False),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="A live view in the whole terminal, until Ctrl-C.")
    ] = False,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Show the live model, its traffic and labels, the latest check and the last events.

    For example:

        perennial status
        perennial status --watch
        perennial status --watch 10
        perennial status --json | jq .check.verdict

    `--watch` looks again every 2 seconds, or as often as you say, and adds the traffic of the last hour minute by
    minute and each family's score. While the database is away it says so and shows what it knew.
    """
    settings = console.settings_for(name)
    if watch:
        if as_json:
            raise InvalidParameter("--watch draws for people; for a program: perennial status --json, again and again")
        from commands.status_view import show_live

        show_live(settings, seconds or _LOOK_SECONDS)
        return
    if seconds is not None:
        raise InvalidParameter("SECONDS is how often --watch looks: perennial status --watch 10")

    from perennial.ledger import open_ledger

    document = status_document(open_ledger(settings.ledger_url), settings)
    if as_json:
        console.print_json(document)
    else:
        _show(document)


def status_document(engine: sa.Engine, settings: Settings) -> dict[str, Any]:
    """What `perennial status --json` prints.

    Raises:
        NoLiveModel: nothing has been deployed.
        LedgerUnavailable: the database does not answer.
    """
    from perennial import event_wording
    from perennial.ledger import checks, deployments, events, models, new_classes, predictions, rollouts, watches

    name, window = settings.name, settings.monitor.window
    live = deployments.live(engine, name)
    manifest = models.get(engine, name, live.version).manifest
    new = new_classes.find(engine, name, manifest.classes, settings.retrain.new_class_labels)
    latest = predictions.span(engine, live.version, window)
    check = next(iter(checks.latest(engine, name, model_version=live.version)), None)
    newest = events.newest(engine, name, _EVENTS)
    of = settings.retrain.watch_labels
    watch = watches.open_watch(engine, name) if of else None
    rollout = rollouts.running(engine, name)
    return {
        "name": name,
        "model": {
            "version": live.version,
            "deployed_at": live.at.isoformat(),
            "reason": live.reason,
            "actor": live.actor,
            "backbone": manifest.backbone,
            "classes": list(manifest.classes),
            "metrics": {key: value.model_dump() for key, value in manifest.metrics.items()},
        },
        "watch": None
        if watch is None
        else {
            "compared_with": watch.before,
            "of": settings.retrain.watch_labels,
            **watches.tally(engine, watch).document(),
        },
        "rollout": {
            "version": rollout.challenger,
            "stage": rollout.current,
            "stages": list(rollout.stages),
            "since": rollout.at.isoformat(),
        }
        if rollout is not None
        else None,
        "predictions": predictions.count(engine, live.version),
        "window": {
            "rows": latest.rows,
            "labelled": len(predictions.labelled_answers(engine, live.version, window, new=new.classes)),
            "start": latest.start.isoformat() if latest.start else None,
            "end": latest.end.isoformat() if latest.end else None,
        },
        "new_labels": {"images": dict(new.images), "needed": new.at_least, "classes": list(new.classes)},
        "check": None
        if check is None
        else {
            "id": check.id,
            "at": check.at.isoformat(),
            "verdict": check.verdict,
            "state": check.detail.get("state"),
            "causes": check.detail.get("causes", []),
            "accuracy": check.detail.get("accuracy"),
            "families": {
                family: {key: found.get(key) for key in ("score", "floor", "p_value", "alarm", "skipped")}
                for family, found in check.detail.get("families", {}).items()
            },
            "window": check.window,
            "report_url": check.report_url,
        },
        "events": [
            {
                "id": event.id,
                "at": event.at.isoformat(),
                "kind": str(event.kind),
                "what": event_wording.what(event),
                "why": event_wording.why(event),
            }
            for event in newest
        ],
    }


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from perennial import event_wording

    model, window, check = document["model"], document["window"], document["check"]
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a path is there to be copied
    table.add_row("model", f"[bold]{escape(document['name'])}[/] {model['version']}, {escape(model['backbone'])}")
    table.add_row("live since", escape(f"{model['deployed_at'][:19]} UTC: {model['reason']} ({model['actor']})"))
    if document["watch"] is not None:
        table.add_row("watch", escape(_watch(document["watch"])))
    for metric, value in model["metrics"].items():
        table.add_row(
            metric.replace("_", " "), f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}) held out"
        )
    if document["rollout"] is not None:
        beside = document["rollout"]
        stage = event_wording.stage_title(beside["stage"])
        table.add_row("beside it", f"{beside['version']}: {stage}, since {beside['since'][:19]} UTC")
    table.add_row("predictions", f"{document['predictions']:,}")
    table.add_row("window", f"the latest {window['rows']:,}, {window['labelled']:,} of them labelled")
    new = document["new_labels"]
    if new["images"]:
        table.add_row("new labels", escape(new_labels_in_words(new)))
    if check is None:
        table.add_row("check", "none yet; run: perennial monitor")
    else:
        colour = {"ok": "green", "insufficient_data": "yellow"}.get(check["verdict"], "red")
        table.add_row("check", f"[{colour}]{check['verdict']}[/] {check['at'][:19]} UTC")
        for cause in check["causes"]:
            table.add_row("", escape(cause_in_words(cause)))
        for source, how in (("labels", "by labels"), ("estimated", "estimated")):
            of = (check["accuracy"] or {}).get(source)
            if of is not None:
                table.add_row("", f"accuracy {of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f}) {how}")
        if check["state"]:
            table.add_row("state", check["state"])
        if check["report_url"]:
            table.add_row("report", escape(check["report_url"]))
    console.out.print(table)
    if document["events"]:
        trail = Table("event", "at (UTC)", "what", "why", box=None)
        for event in document["events"]:
            told = (event_wording.title(event["kind"]), escape(event["why"] or event["what"]))
            trail.add_row(str(event["id"]), event["at"][:19].replace("T", " "), *told)
        console.out.print(trail)


def _watch(found: dict[str, Any]) -> str:
    told = f"compared with {found['compared_with']} on {found['rows']} of {found['of']} labelled images"
    if not found["rows"]:
        return told
    shares = [f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in (found["live"], found["before"])]
    return f"{told}: {shares[0]} against {shares[1]}"


def cause_in_words(cause: Any) -> str:
    """One cause of a check's verdict, as the ledger keeps it."""
    return f"{cause['cause']}: {cause['why']}" if isinstance(cause, Mapping) else str(cause)


def new_labels_in_words(new: dict[str, Any]) -> str:
    """Labels that the model does not know: how near each is to being a class."""
    ordered = sorted(new["images"].items(), key=lambda each: (-each[1], each[0]))
    of = f" of {new['needed']}" if new["needed"] else ""
    told = [
        f"{label} ({count} images, learnt by the next retrain)" if label in new["classes"] else f"{label} ({count}{of})"
        for label, count in ordered[:_NEW_LABELS]
    ]
    more = f" and {len(ordered) - _NEW_LABELS} more" if len(ordered) > _NEW_LABELS else ""
    return ", ".join(told) + more
