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

    perennial train photos/        # a folder with one folder a class
    perennial serve                # POST /v1/predict
    perennial monitor              # is the traffic still what the model knows?
    perennial retrain --if-due     # train anew; goes live only if it is better

`perennial watch` does the last two by itself. `perennial demo` shows all of it in two minutes.

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
        events,
        import_model,
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

    app.command("train")(train.train)
    app.command("import")(import_model.import_model)
    app.command("backbones")(backbones.backbones)
    app.command("serve")(serve.serve)
    app.command("monitor")(monitor.monitor)
    app.command("watch")(watch.watch)
    app.command("ui")(ui.ui)
    app.command("retrain")(retrain.retrain)
    app.add_typer(models.app, name="models")
    app.add_typer(rollout.app, name="rollout")
    app.add_typer(labels.app, name="labels")
    app.add_typer(keys.app, name="keys")
    app.command("status")(status.status)
    app.command("events")(events.events)
    app.command("notify")(notify.notify)
    app.command("prune")(prune.prune)
    app.command("pretrain")(pretrain.pretrain)
    app.command("demo")(demo.demo)


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
