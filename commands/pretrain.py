"""`perennial pretrain`: make a checkpoint from generated images, or continue one on images without labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from commands import console
from perennial.errors import InvalidParameter


def pretrain(
    out: Annotated[
        Path | None, typer.Argument(help="The file to write, such as `roots.safetensors`.", show_default=False)
    ] = None,
    out_option: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The same, as an option.", show_default=False)
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="default|builtin|none|PATH",
            help="Continue from these weights, on the images of `--data`.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images without labels; its subfolders mean nothing.", show_default=False),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The torchvision backbone to pretrain.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    images_per_class: Annotated[
        int | None, typer.Option(min=1, help="Generated images of each class in one epoch.")
    ] = None,
    glyphs: Annotated[int | None, typer.Option(min=0, help="Classes of printed glyphs (letters and symbols).")] = None,
    fractals: Annotated[int | None, typer.Option(min=0, help="Classes of fractals.")] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="Side of the images, in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed makes the same checkpoint.")] = None,
    json: console.Json = False,
) -> None:
    """Make a pretrained checkpoint from **generated images**, or continue one on **your images without labels**.

    Generated: glyphs of the fonts that matplotlib ships, heavily distorted, and fractals (iterated function systems)
    teach the network edges, strokes and shapes; no photo, no label, no download. Every option that is not given is as
    in the recipe of the built-in checkpoint, which takes about half an hour on two cores.

        perennial pretrain roots.safetensors --epochs 3

    Continued (SimCLR): views of one image shall be more alike than views of two. It pays where the weights have never
    seen anything like the images; ImageNet's gained nothing from it in our measurements.

        perennial pretrain steel.safetensors --from builtin --data steel/

    What comes out is used with `perennial train DATA --weights FILE`.
    """
    target = out or out_option
    if target is None or (out is not None and out_option is not None):
        raise InvalidParameter("say once where to write: perennial pretrain FILE.safetensors")
    if (start is None) != (data is None):
        raise InvalidParameter("--from WEIGHTS and --data FOLDER go together: what to continue, and on which images")
    if start is None or data is None:
        _generated(
            target,
            {
                "backbone": backbone,
                "epochs": epochs,
                "images_per_class": images_per_class,
                "glyph_classes": glyphs,
                "fractal_classes": fractals,
                "image_size": image_size,
                "seed": seed,
            },
            json,
        )
        return
    if target.suffix != ".safetensors":
        raise InvalidParameter(f"{target} must end in .safetensors, or it cannot be read back")
    given = {"--images-per-class": images_per_class, "--glyphs": glyphs, "--fractals": fractals}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise InvalidParameter(f"{', '.join(wrong)} shape generated images; leave out, or leave out --data")
    _continued(target, start, data, backbone, {"epochs": epochs, "image_size": image_size}, seed or 0, json)


def _generated(out: Path, given: dict[str, Any], json: bool) -> None:
    from perennial.progress import Step
    from training.pretrain import PretrainProgress, Recipe, run

    with console.progress() as progress:

        def show(state: PretrainProgress) -> None:
            stage = f"pretraining (loss {state.loss:.2f}, accuracy {state.accuracy:.2f})"
            if not console.err.is_terminal:
                console.err.print(f"{stage}: epoch {state.epoch}/{state.epochs}", markup=False)
                return
            progress(Step("pretraining", state.epoch, state.epochs))

        recipe = Recipe(**{key: value for key, value in given.items() if value is not None})
        result = run(recipe, out, show)
    _print(asdict(result), f"from {result.images:,} images", result.recipe.backbone, "", json)


def _continued(
    out: Path, start: str, data: Path, backbone: str | None, given: dict[str, int | None], seed: int, json: bool
) -> None:
    import os

    from perennial.images import ImageLimits
    from training.self_supervised import EpochEnd, Recipe, pretrain_on

    settings = console.settings_for(train={"backbone": backbone})
    with console.progress() as progress:

        def show(state: EpochEnd) -> None:
            if not console.err.is_terminal:
                console.err.print(f"epoch {state.epoch}/{state.epochs}: loss {state.loss:.3f}", markup=False)

        result = pretrain_on(
            data,
            out,
            weights=start,
            backbone=settings.train.backbone,
            recipe=Recipe(**{key: value for key, value in given.items() if value is not None}),
            seed=seed,
            threads=settings.train.threads or os.cpu_count() or 1,
            limits=ImageLimits(settings.serve.max_bytes, settings.serve.max_pixels),
            report=show,
            progress=progress,
        )
    for skip in result.skipped[:20]:
        console.err.print(f"not used: {skip.location}: {skip.reason}", markup=False)
    if len(result.skipped) > 20:
        console.err.print(f"and {len(result.skipped) - 20} more; --json lists them all", markup=False)
    size = f" --image-size {result.image_size}"
    _print(asdict(result), f"{result.images:,} images without labels", result.backbone, size, json)


def _print(document: dict[str, Any], images: str, backbone: str, options: str, json: bool) -> None:
    if json:
        console.print_json(document)
        return
    path = document["path"]
    console.out.print(
        f"{path}: {document['bytes'] / 2**20:.1f} MB, sha256 {document['sha256'][:12]}…, "
        f"{images} in {document['seconds']:.0f} s",
        markup=False,
    )
    console.out.print(f"use it: perennial train DATA --backbone {backbone} --weights {path}{options}", markup=False)
