"""Every classification network of torchvision, one by one: what Perennial can do with it.

Each is built with random weights (the published ones where they are at hand), its classifier replaced, its last stage
and a new head trained one step on 2 images, then exported; the graph's outputs on 4 images are compared with torch's.
A network lives in a process of its own: one that fails, hangs or runs out of memory is listed with the reason, and the
next one is tried. Images are small where the network allows it (the table says how small): what is shown here does not
depend on their size, and 64 pixels take a tenth of the time.

    python -m benchmarks.backbones
    python -m benchmarks.backbones --only resnet18 vit_b_16
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.transfer import RESULTS, hardware

#: Pixels of the images where 64 do not do: too small for a network, or not a multiple of its patches.
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
SMALL = 64
CLASSES = 5
_SECONDS = 900.0
_RESIDUAL = 0.2


@dataclass(frozen=True)
class Outcome:
    """What came of one network. `parameters` are without the classifier; `stages` can be trained from; `difference` is
    the largest between graph and torch, relative above 1; `seconds` is all of it, start of the process included; `peak`
    is its memory. `reason` says what could not be done, and is empty if all could."""

    backbone: str
    weights: str
    pixels: int
    parameters_millions: float = 0.0
    features: int = 0
    stages: int = 0
    built: bool = False
    trained: bool = False
    exported: bool = False
    equal: bool = False
    difference: float | None = None
    export_seconds: float | None = None
    seconds: float = 0.0
    peak_megabytes: int = 0
    reason: str = ""


def examine(name: str, weights: str, pixels: int, report: Path) -> None:
    """Try one network, and write what came of it so far to `report` after each step: the next may end the process."""
    with contextlib.suppress(OSError):  # if memory runs out, it is this process that has to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    import numpy as np
    import torch
    from torch import nn

    from training import backbones
    from training.export import ServedModel, export_graph, fixed_projection

    torch.set_num_threads(1)
    facts: dict[str, object] = {}

    def done(**more: object) -> None:
        facts.update(more, peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        report.write_text(json.dumps(facts))

    try:
        backbone = backbones.load(name, weights, image_size=pixels)
        parameters = sum(each.numel() for each in backbone.network.parameters())
        done(built=True, parameters_millions=round(parameters / 1e6, 2), features=backbone.width)

        images = _images(pixels)
        if weights == "none":
            _settle(backbone.network, backbones.normalised(images, backbone))
        found = backbones.stages(backbone)
        if sum(each.numel() for stage in found for each in stage.parameters()) != parameters:
            raise AssertionError("the stages do not hold every parameter once")
        front, back = backbones.split(backbone, len(found) - 1)
        with torch.inference_mode():
            features = backbone.network(backbones.normalised(images, backbone))
        two = backbones.normalised(images[:2], backbone)
        with torch.no_grad():
            activations = front(two)
            if not torch.equal(back(activations.clone()), backbone.network(two)):
                raise AssertionError("the network in two parts computes something else than in one")
        head = nn.Linear(backbone.width, CLASSES)
        with torch.no_grad():  # logits of about 1, whatever random weights do to the features
            head.weight.div_(features.abs().mean().clamp(min=1e-6) * backbone.width**0.5)
        _train_one_step(back, head, activations, list(found[-1].parameters()))
        done(trained=True, stages=len(found))

        # Fixed directions: principal components of a network of random weights are rounding, most of them.
        model = ServedModel(backbone, head, 1.0, fixed_projection(backbone.width))
        with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
            began = time.perf_counter()
            difference = export_graph(model, np.ascontiguousarray(images[:4].numpy()), Path(folder, "graph.onnx"))
            done(exported=True, equal=True, difference=difference, export_seconds=time.perf_counter() - began)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is to be listed
        done(reason=f"{type(error).__name__}: {error}".strip().partition("\n")[0])


def _images(pixels: int) -> Any:
    """Coloured clouds, uint8 [16, H, W, 3]: noise of equal strength in every image would look the same to a network."""
    import torch
    from torch.nn import functional

    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 5, 5, generator=random) * torch.rand(16, 3, 1, 1, generator=random)
    clouds = functional.interpolate(coarse, size=(pixels, pixels), mode="bicubic").clamp(0, 1)
    return (clouds * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _settle(network: Any, images: Any) -> None:
    """Make random weights behave: BatchNorm sees the images once, as it would have in training, and the residual
    branches of deep networks are turned down, as training turns them. Without it the signal dies out, or each block
    magnifies the rounding of the last (in efficientnet_b2 torch's own float32 is then 0.4 % off float64)."""
    import torch
    from torch import nn
    from torchvision.models.efficientnet import FusedMBConv, MBConv
    from torchvision.models.resnet import BasicBlock, Bottleneck

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            nn.init.constant_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight, _RESIDUAL)
        elif isinstance(block, MBConv | FusedMBConv) and block.use_res_connect:
            last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
            nn.init.constant_(last.weight, _RESIDUAL)
    for norm in norms:
        norm.momentum = None  # take the statistics as they are
        norm.train()
    with torch.no_grad():
        network(images)
    for norm in norms:
        norm.eval()


def _train_one_step(back: Any, head: Any, activations: Any, parameters: list[Any]) -> None:
    """One step of plain gradient descent on two images of two classes."""
    import torch
    from torch.nn import functional

    for parameter in parameters:
        parameter.requires_grad_(True)
    loss: Any = functional.cross_entropy(head(back(activations)), torch.tensor([0, 1]))
    loss.backward()
    moved = 0.0
    with torch.no_grad():
        for parameter in (*parameters, *head.parameters()):
            if parameter.grad is not None:
                size = float(parameter.grad.norm())
                moved += size
                # A step of fixed length: random weights give gradients of any size.
                parameter.sub_(parameter.grad, alpha=1e-3 / max(size, 1e-12))
                parameter.grad = None
            parameter.requires_grad_(False)
    if not (torch.isfinite(loss) and moved > 0.0 and moved < float("inf")):
        raise AssertionError(f"one step of training gave loss {float(loss):g} and gradients of {moved:g}")


def run(name: str, weights: str) -> Outcome:
    """The same in a process of its own."""
    pixels = SIZES.get(name, SMALL)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "benchmarks.backbones", "--child", name, weights, str(pixels), str(report)]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            ended = "" if child.returncode == 0 else _how(child)
        except subprocess.TimeoutExpired:
            ended = f"was not done after {_SECONDS:.0f} s"
        facts = json.loads(report.read_text()) if report.is_file() else {}
    if ended:
        facts["reason"] = ended
    return Outcome(name, weights, pixels, **facts, seconds=round(time.perf_counter() - began, 1))


def _how(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode == -9:
        return "the process was killed, most likely for want of memory"
    last = child.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"the process ended with {child.returncode}: {last[0]}"


def write(outcomes: list[Outcome], path: Path) -> None:
    """One network a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Outcome))
        for outcome in outcomes:
            writer.writerow(_cell(value) for value in asdict(outcome).values())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _line(outcome: Outcome) -> str:
    steps = (outcome.built, outcome.trained, outcome.exported, outcome.equal)
    built, trained, exported, equal = ("yes" if step else "no" for step in steps)
    difference = "" if outcome.difference is None else f"{outcome.difference:.1e}"
    return (
        f"{outcome.backbone:<20} {outcome.pixels:>6} {outcome.parameters_millions:>7.1f} M {outcome.stages:>6}  "
        f"{built:<5} {trained:<7} {exported:<8} {equal:<5} {difference:>10} {outcome.seconds:>7.1f}  {outcome.reason}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks instead of all")
    parser.add_argument("--out", type=Path, default=RESULTS / f"backbones-{hardware()}.csv")
    parser.add_argument("--child", nargs=4, metavar=("NAME", "WEIGHTS", "PIXELS", "REPORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        name, weights, pixels, report = chosen.child
        examine(name, weights, int(pixels), Path(report))
        return
    from training.catalog import entries

    outcomes = []
    print(f"{'':<20} pixels    params stages  built trained exported equal difference seconds")
    for entry in entries():
        if chosen.only and entry.name not in chosen.only:
            continue
        outcome = run(entry.name, "default" if "default" in entry.at_hand else "none")
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        write(outcomes, chosen.out)  # after each: what was measured is kept if this is interrupted
    good = sum(outcome.equal for outcome in outcomes)
    print(f"\n{good} of {len(outcomes)} built, trained one step, exported and equal to torch within 1e-3")
    for outcome in outcomes:
        if outcome.reason:
            print(f"  {outcome.backbone}: {outcome.reason}")
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
