"""`perennial train`: a labelled folder of images becomes a model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands import console
from perennial.errors import PerennialError

if TYPE_CHECKING:
    from training.train import Trained

_NEEDED = ("torch", "torchvision", "sklearn", "onnx", "onnxscript", "safetensors", "pyarrow", "jinja2")


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder with one folder a class; a folder with train/ and val/ of such; "
            "or a .csv or .parquet manifest with columns image, label[, split][, weight].",
            show_default=False,
        ),
    ],
    name: console.Name = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="A torchvision classification network, or auto: the best of those whose weights are at hand. "
            "The setting `train.backbone` unless given."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="default|builtin|none|PATH",
            help="Pretrained weights: torchvision's own, the ones shipped with Perennial, random ones on purpose, "
            "or a .pth or .safetensors file; the setting `train.weights` unless given.",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="auto|majority|simple|knn|linear_probe|partial|full|scratch",
            help="The rung of the ladder: auto climbs from the cheapest to the dearest while it pays.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="What auto may spend on choosing; the setting `train.budget` unless given."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Unlabelled images from where the model will be used: the probe is aligned to them. Classes should be "
            "about as common there as in DATA.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME[:WEIGHTS]", help="A larger network that the backbone learns from first."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=0, help="Side of the square the network sees, in pixels; 0 is the weights' own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes splits and training repeatable.")] = None,
    accelerator: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="What the network is fine-tuned on.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|32-true|bf16-mixed", help="What it is fine-tuned in.")
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(metavar="none|csv|tensorboard", help="Write each epoch's numbers to a file; says where."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Train a classifier on a labelled folder. The first model of a name goes live at once.

    For example:

        perennial train photos/
        perennial train photos/ --weights builtin --name bees
        perennial train photos.csv --backbone auto --budget 1800

    `torchrun --nproc-per-node 2 --no-python -- perennial train DATA` shares the fine-tuning between processes.
    """
    if console.follows():
        from training.together import follow

        follow()
        return
    settings = console.settings_for(
        name,
        train={
            "backbone": backbone, "weights": weights, "strategy": strategy, "budget": budget, "image_size": image_size,
            "seed": seed, "target": target, "teacher": teacher, "accelerator": accelerator, "precision": precision,
            "log": log,
        },
    )  # fmt: skip
    _need_training_packages()
    with console.collecting_nothing():
        from perennial.ledger import open_ledger
        from training import processes
        from training.train import train as run

        # The ledger first: better to hear now than after the work that it cannot be reached.
        engine = open_ledger(settings.ledger_url)
    with processes.leading(), console.progress() as progress:
        trained = run(engine, settings, data, progress)
    console.report_skipped([f"{skip.location}: {skip.reason}" for skip in trained.fitted.skipped])
    if as_json:
        console.print_json(_document(trained))
    else:
        _print(trained, named=f" --name {name}" if name is not None else "")


def _need_training_packages() -> None:
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise PerennialError(f"training needs {', '.join(missing)}: pip install 'perennial[train]'")


def _document(trained: Trained) -> dict[str, Any]:
    fitted = trained.fitted
    manifest = fitted.bundle.manifest
    dataset = manifest.dataset
    return {
        "version": manifest.version,
        "name": manifest.name,
        "strategy": manifest.strategy,
        "why": manifest.why,
        "backbone": manifest.backbone,
        "weights": manifest.pretrained.model_dump(),
        "classes": list(manifest.classes),
        "counts": {"train": dataset.train, "validation": dataset.validation, "test": dataset.test},
        "metrics": {name: estimate.model_dump() for name, estimate in manifest.metrics.items()},
        "seconds": round(fitted.seconds, 2),
        "bundle": str(fitted.bundle.path),
        "report": str(fitted.bundle.report),
        "log": str(trained.log) if trained.log else None,
        "live": trained.live,
        "ladder": manifest.ladder.model_dump() if manifest.ladder else None,
        "findings": [finding.model_dump() for finding in manifest.findings],
        "skipped": [{"location": skip.location, "reason": skip.reason} for skip in fitted.skipped],
    }


def _print(trained: Trained, *, named: str) -> None:
    from commands.training_summary import print_summary

    fitted = trained.fitted
    manifest = fitted.bundle.manifest
    print_summary(console.out, manifest, seconds=fitted.seconds, report=fitted.bundle.report)
    if trained.log:
        console.out.print(f"The log of this run: {trained.log}", markup=False)
    if trained.live:
        console.out.print(f"It is live: [bold]perennial serve{named}[/] answers with it.")
    else:
        console.out.print(
            f"Another version is live. To change to this one: perennial models promote {manifest.version}{named}"
        )
