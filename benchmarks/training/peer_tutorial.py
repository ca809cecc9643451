"""A peer: PyTorch's tutorial "Transfer Learning for Computer Vision", its part "ConvNet as fixed feature extractor".

Recipe and code follow the tutorial (Chilamkurthy): SGD at .001 with momentum .9 on the new head alone, a tenth of it
after every 7 epochs, RandomResizedCrop(224) and flips, batches of 4, 4 workers, 25 epochs, the best epoch on the
validation photos counts. Two things differ: the network is mobilenet_v2, with the weights it is given, and each epoch
is noted in a file, with the seconds since the process was started.

    python -m benchmarks.training.peer_tutorial DATA WEIGHTS OUT [--epochs 25] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torchvision import datasets, models, transforms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path, help="one JSON object a line and epoch")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)

    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    data_transforms = {
        "train": transforms.Compose(
            [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
        ),
        "val": transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
        ),
    }
    image_datasets = {x: datasets.ImageFolder(chosen.data / x, data_transforms[x]) for x in ("train", "val")}
    dataloaders = {
        x: torch.utils.data.DataLoader(image_datasets[x], batch_size=4, shuffle=True, num_workers=4)
        for x in ("train", "val")
    }
    model = models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(chosen.weights, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, len(image_datasets["train"].classes))

    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.classifier[1].parameters(), lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    began = time.monotonic()
    best = -1
    with chosen.out.open("w", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        for epoch in range(1, chosen.epochs + 1):
            model.train()
            for inputs, labels in dataloaders["train"]:
                optimizer.zero_grad()
                loss = criterion(model(inputs), labels)
                loss.backward()
                optimizer.step()
            scheduler.step()
            model.eval()
            correct = 0
            with torch.no_grad():
                for inputs, labels in dataloaders["val"]:
                    correct += int((model(inputs).argmax(1) == labels).sum())
            if correct > best:
                best = correct
                torch.save(model.state_dict(), Path(folder, "best_model_params.pt"))
            now = time.monotonic()
            noted = {
                "epoch": epoch, "since_start": now - float(os.environ.get("BENCH_BEGAN", began)),
                "since_training": now - began, "correct": correct, "tested": len(image_datasets["val"]),
            }  # fmt: skip
            print(json.dumps(noted), file=file, flush=True)


if __name__ == "__main__":
    main()
