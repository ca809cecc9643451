"""A peer: fastai's `vision_learner(...).fine_tune(epochs)` at its own settings.

Resize(224), aug_transforms(), batches of 64, its own head, optimiser, schedule and rates: one epoch with the body
frozen, then `epochs` with all of it. It is told two things that it does not know: that mobilenet_v2 is cut before its
classifier, and that images are to be normalised as ImageNet's were. The weights are the ones it is given. Each epoch is
noted in a file, with the seconds since the process was started.

    python -m benchmarks.training.peer_fastai DATA WEIGHTS OUT [--epochs 4] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path, help="one JSON object a line and epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    warnings.simplefilter("ignore")  # it uses what torch has deprecated
    import torch
    import torchvision
    from fastai.callback.core import Callback
    from fastai.vision.all import (
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        default_split,
        imagenet_stats,
        set_seed,
        vision_learner,
    )
    from fastai.vision.learner import model_meta

    def mobilenet_v2(pretrained: bool = True) -> Any:
        network = torchvision.models.mobilenet_v2(weights=None)
        network.load_state_dict(torch.load(chosen.weights, weights_only=True))
        return network

    model_meta[mobilenet_v2] = {"cut": -1, "split": default_split, "stats": imagenet_stats}
    set_seed(chosen.seed)
    data = ImageDataLoaders.from_folder(
        chosen.data, train="train", valid="val", item_tfms=Resize(224), batch_tfms=aug_transforms()
    )
    tested = len(data.valid_ds)
    began = time.monotonic()

    with chosen.out.open("w", encoding="utf-8") as file:

        class Note(Callback):  # type: ignore[misc]
            order = 60  # after the recorder

            def __init__(self) -> None:
                self.done = 0

            def after_epoch(self) -> None:
                self.done += 1
                now = time.monotonic()
                share: Any = self.recorder.values[-1][-1]
                noted = {
                    "epoch": self.done, "since_start": now - float(os.environ.get("BENCH_BEGAN", began)),
                    "since_training": now - began, "correct": round(float(share) * tested), "tested": tested,
                }  # fmt: skip
                print(json.dumps(noted), file=file, flush=True)

        learner = vision_learner(data, mobilenet_v2, metrics=accuracy, cbs=Note())
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(chosen.epochs)


if __name__ == "__main__":
    main()
