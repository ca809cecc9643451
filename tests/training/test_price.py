from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training import backbones, price


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 64), ("swin_t", 64)])
def test_the_multiply_adds_are_those_that_torch_counts(name: str, size: int) -> None:
    backbone = backbones.load(name, "none", image_size=size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.network(torch.zeros(1, 3, size, size))
    found = price.of_network(backbone, 5)
    assert found.multiply_adds == counter.get_total_flops() // 2 + 5 * backbone.width
    assert found.parameters == sum(each.numel() for each in backbone.network.parameters()) + 5 * (backbone.width + 1)


def test_to_count_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys; from training import backbones, price; "
        "price.of_network(backbones.load('squeezenet1_1', 'none', image_size=64), 5); print('sympy' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"
