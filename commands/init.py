"""`perennial init`: a commented `perennial.toml`, to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands import console
from perennial.errors import InvalidParameter


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write it; made if need be.")] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Every setting, not only those used most.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    name: console.Name = None,
) -> None:
    """Write a `perennial.toml` with the settings used most, commented out at their defaults, and what each is for.

    For example:

        perennial init
        perennial init deploy/ --name bees
        perennial init --all --force

    Asks nothing and changes nothing: with the file as it is written, everything is as without it. Take away the `# `
    before what you want to change. A file that is there is left alone, unless `--force` says otherwise. The commands
    that run in that folder read it; `perennial --config FILE` reads another.
    """
    from commands.settings_file import text
    from perennial.settings import CONFIG_FILE, Settings, load_settings

    if name is not None:
        load_settings(name=name)  # refuses a name that is none
    path = folder / CONFIG_FILE
    written = text(Settings(), name=name, everything=everything)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(written)
    except FileExistsError as error:
        raise InvalidParameter(f"{path} is there already and was left as it is; --force replaces it") from error
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be written: {error.strerror}") from error
    which = "every setting" if everything else "the settings used most (--all writes every one)"
    console.out.print(f"{path}: {which}, at the defaults; take away the '# ' before what you change.", markup=False)
    console.out.print("Is it right so? perennial doctor", markup=False)
