"""The `perennial` command: collects the verbs, and turns our errors into messages and exit codes."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from commands import console
from perennial.errors import PerennialError

app = typer.Typer(
    name="perennial",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Serve a fine-tuned image classifier, watch it for drift, retrain it when it must.

The usual order:

    perennial init                 # a perennial.toml to edit; optional
    perennial train photos/        # a folder with one folder a class
    perennial serve                # POST /v1/predict
    perennial monitor              # is the traffic still what the model knows?
    perennial retrain --if-due     # train anew; goes live only if it is better

`perennial watch` does the last two by itself. `perennial demo` shows all of it in two minutes, `perennial doctor` says
what is wrong and how to mend it. Each command has examples: `perennial COMMAND --help`. Completion of commands and
options: `perennial --install-completion`, once, then a new shell.

Exit codes: 0 done, 1 failed, 2 usage, 3 bad input data, 4 nothing to do, 10 a retrain is called for
(`monitor --exit-code`), 11 the gate refused.""",
)


@app.callback()
def options(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="Settings file; `$PERENNIAL_CONFIG`, else `perennial.toml` in this folder, unless given."
        ),
    ] = None,
) -> None:
    console.invocation.config = config


_TERMINATED: Final = 143
#: What one may want to do; the top-level help is grouped by it.
_MAKE: Final = "Make a model"
_RUN: Final = "Serve it and keep it good"
_SEE: Final = "See what happens"
_JUDGE: Final = "Decide yourself"
_SET_UP: Final = "Set up and mend"
#: Which extra brings which package; the serving image has neither of the two.
_EXTRAS: Final = {
    "train": ("training", "torch", "torchvision", "sklearn", "scipy", "onnx", "onnxscript", "safetensors", "pyarrow"),
    "monitor": ("monitoring", "evidently", "pandas", "apscheduler"),
}


def _collect() -> None:
    # Each module registers its own verbs; none of them imports a wing before the verb runs.
    from commands import (
        backbones,
        demo,
        doctor,
        events,
        import_model,
        init,
        keys,
        labels,
        models,
        monitor,
        notify,
        pretrain,
        prune,
        retrain,
        rollout,
        serve,
        status,
        train,
        ui,
        watch,
    )

    app.command("train", rich_help_panel=_MAKE)(train.train)
    app.command("import", rich_help_panel=_MAKE)(import_model.import_model)
    app.command("backbones", rich_help_panel=_MAKE)(backbones.backbones)
    app.command("pretrain", rich_help_panel=_MAKE)(pretrain.pretrain)
    app.command("serve", rich_help_panel=_RUN)(serve.serve)
    app.command("monitor", rich_help_panel=_RUN)(monitor.monitor)
    app.command("retrain", rich_help_panel=_RUN)(retrain.retrain)
    app.command("watch", rich_help_panel=_RUN)(watch.watch)
    app.command("notify", rich_help_panel=_RUN)(notify.notify)
    app.command("prune", rich_help_panel=_RUN)(prune.prune)
    app.command("status", rich_help_panel=_SEE)(status.status)
    app.command("events", rich_help_panel=_SEE)(events.events)
    app.command("ui", rich_help_panel=_SEE)(ui.ui)
    app.command("demo", rich_help_panel=_SEE)(demo.demo)
    app.command("init", rich_help_panel=_SET_UP)(init.init)
    app.command("doctor", rich_help_panel=_SET_UP)(doctor.doctor)
    app.add_typer(models.app, name="models", rich_help_panel=_JUDGE)
    app.add_typer(rollout.app, name="rollout", rich_help_panel=_JUDGE)
    app.add_typer(labels.app, name="labels", rich_help_panel=_JUDGE)
    app.add_typer(keys.app, name="keys", rich_help_panel=_SET_UP)


_collect()


def main() -> None:
    """Entry point. Exit codes are those of `perennial.errors`."""
    # Ended politely, work gives its lease back, removes what is half written and says in the ledger that it failed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in _EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        console.err.print(f"this needs {package}: pip install 'perennial[{extra}]'", markup=False)
        sys.exit(1)
    except PerennialError as error:
        console.err.print(f"[bold red]{error.title}:[/] ", end="")
        console.err.print(error.detail, markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.err.print("stopped")
        sys.exit(130)
    finally:
        if "triton" not in sys.modules:  # it would complain of leaks
            gc.freeze()  # the interpreter's last collection then passes over all that was imported


if __name__ == "__main__":
    main()
