"""`perennial keys`: API keys. Nothing is kept here: the key goes to its holder, its digest into the settings."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from commands import console
from perennial.errors import InvalidParameter

app = typer.Typer(no_args_is_help=True, help="API keys of the service.", context_settings={"max_content_width": 100})


@app.callback()
def keys() -> None:
    """API keys of the service."""


@app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="What the logs and the audit trail call its holder.")],
    scope: Annotated[
        list[str], typer.Option("--scope", help="`predict`, `feedback` or `admin` (everything); may be repeated.")
    ],
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it expires; never unless given.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Make a key, and print it once, with the lines for `perennial.toml` that let it in.

    For example:

        perennial keys create --name shop --scope predict --scope feedback
        perennial keys create --name ops --scope admin --days 90

    The settings hold its sha256 only, so a key that is lost cannot be had again: make another.
    """
    from pydantic import ValidationError

    from perennial.settings_sections import ApiKey
    from service.keys import digest_of, new_key

    key = new_key()
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
    try:
        # What is printed is what the settings will take.
        entry = ApiKey.model_validate(
            {"name": name, "scopes": list(dict.fromkeys(scope)), "sha256": digest_of(key), "expires": expires}
        )
    except ValidationError as error:
        said = "; ".join(f"--{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise InvalidParameter(said.replace("--scopes", "--scope")) from error
    settings = entry.model_dump(mode="json", exclude_none=True)
    toml = "\n".join(
        ["[[serve.keys]]"]
        + [f"{field} = {value if field == 'expires' else json.dumps(value)}" for field, value in settings.items()]
    )
    if as_json:
        console.print_json({"key": key, "settings": settings, "toml": toml})
        return
    console.out.print(f"The key of {entry.name}, shown this once:\n\n    {key}\n", markup=False)
    console.out.print("Into perennial.toml, then start the service anew:\n", markup=False)
    console.out.print("\n".join(f"    {line}" for line in toml.splitlines()), markup=False)
    console.out.print(f"\nOr, as the only key: PERENNIAL_SERVE__KEYS='{json.dumps([settings])}'", markup=False)
