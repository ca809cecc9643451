"""`perennial pretrain`: make a checkpoint from generated images, with no outside data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from commands import console


def pretrain(
    out: Annotated[Path, typer.Argument(help="The file to write, such as `roots.safetensors`.")],
    backbone: Annotated[str | None, typer.Option(help="The torchvision backbone to pretrain.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over freshly generated images.")] = None,
    images_per_class: Annotated[int | None, typer.Option(min=1, help="Images of each class in one epoch.")] = None,
    glyphs: Annotated[int | None, typer.Option(min=0, help="Classes of printed glyphs (letters and symbols).")] = None,
    fractals: Annotated[int | None, typer.Option(min=0, help="Classes of fractals.")] = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="Side of the images, in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed makes the same checkpoint.")] = None,
    json: console.Json = False,
) -> None:
    """Make a pretrained checkpoint from **generated images**: no photo, no label, no download.

    Glyphs of the fonts that matplotlib ships, heavily distorted, and fractals (iterated function systems) teach the
    network edges, strokes and shapes. What comes out is used with `perennial train DATA --weights FILE`. Every option
    that is not given is as in the recipe of the built-in checkpoint, which takes about half an hour on two cores.

        perennial pretrain roots.safetensors --epochs 3
    """
    from perennial.progress import Step
    from training.pretrain import PretrainProgress, Recipe, run

    with console.progress() as progress:

        def show(state: PretrainProgress) -> None:
            stage = f"pretraining (loss {state.loss:.2f}, accuracy {state.accuracy:.2f})"
            if not console.err.is_terminal:
                console.err.print(f"{stage}: epoch {state.epoch}/{state.epochs}", markup=False)
                return
            progress(Step("pretraining", state.epoch, state.epochs))

        given: dict[str, Any] = {
            "backbone": backbone,
            "epochs": epochs,
            "images_per_class": images_per_class,
            "glyph_classes": glyphs,
            "fractal_classes": fractals,
            "image_size": image_size,
            "seed": seed,
        }
        recipe = Recipe(**{key: value for key, value in given.items() if value is not None})
        result = run(recipe, out, show)
    if json:
        console.print_json(asdict(result))
        return
    console.out.print(
        f"{result.path}: {result.bytes / 2**20:.1f} MB, sha256 {result.sha256[:12]}…, "
        f"from {result.images:,} images in {result.seconds:.0f} s",
        markup=False,
    )
    console.out.print(
        f"use it: perennial train DATA --backbone {result.recipe.backbone} --weights {result.path}", markup=False
    )
