"""`perennial notify`: tells the webhooks what happened, and exits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import console

if TYPE_CHECKING:
    from perennial.settings import Settings

_NOTHING: Final = 4


def notify(
    test: Annotated[
        bool, typer.Option("--test", help="Send each webhook a test message; say what it answers.")
    ] = False,
    name: console.Name = None,
    as_json: console.Json = False,
) -> None:
    """Send the webhooks of the setting `notify.webhooks` the events that they have not been sent yet.

    For example:

        perennial notify --test
        perennial notify

    `perennial watch` does so by itself; this is for those who run the checks from cron. Oldest first; where a webhook
    does not answer, what it lacks waits in the ledger for the next time, and nothing is lost. One that is new begins
    with what happens from now on. Signatures and what is sent: docs/audit.md.

        [notify]
        webhooks = ["https://hooks.slack.com/services/..."]

    Exit codes: 0 all are told, 1 something still waits, 4 there was nothing to tell (or no webhook).
    """
    from perennial.errors import NothingToDo
    from perennial.ledger import open_ledger
    from perennial.notifying import tell_all

    settings = console.settings_for(name)
    if not settings.notify.webhooks:
        raise NothingToDo("no webhook is configured; set notify.webhooks (docs/audit.md)")
    if test:
        _try(settings, as_json=as_json)
        return
    told = tell_all(open_ledger(settings.ledger_url), settings)
    if as_json:
        console.print_json({"webhooks": [each.document() for each in told]})
    else:
        for each in told:
            left = f"; the rest waits: {each.left}" if each.left else ""
            gone = f", {each.refused} refused and given up" if each.refused else ""
            console.out.print(f"{each.webhook}: {each.delivered} delivered{gone}{left}", markup=False)
    if any(each.left for each in told):
        raise typer.Exit(1)
    raise typer.Exit(0 if any(each.delivered or each.refused for each in told) else _NOTHING)


def _try(settings: Settings, *, as_json: bool) -> None:
    from perennial.webhooks import configured, send, trial_of

    message = trial_of(settings.name, datetime.now(UTC))
    found: list[dict[str, Any]] = []
    for webhook in configured(settings.notify):
        answer = send(webhook, message)
        delivered = answer.outcome == "delivered"
        found.append({"webhook": webhook.shown, "delivered": delivered, "status": answer.status, "answer": answer.said})
        if not as_json:
            console.out.print(f"{webhook.shown}: {'delivered' if delivered else 'failed'}, {answer}", markup=False)
    if as_json:
        console.print_json({"webhooks": found})
    raise typer.Exit(0 if all(each["delivered"] for each in found) else 1)
