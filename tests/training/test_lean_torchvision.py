from __future__ import annotations

import subprocess
import sys
import textwrap

from training.stand_ins import stand_in


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_torchvision_comes_without_torchs_compiler_which_works_when_it_is_wanted() -> None:
    program = """
        import sys
        from training.lean_torchvision import torchvision
        print("torch._dynamo" in sys.modules, "triton" in sys.modules)
        import torch
        network = torchvision.models.squeezenet1_1(weights=None).eval()
        import torch._dynamo.utils
        double = torch.compile(lambda x: x + x, backend="eager")
        print(torch._dynamo.utils.__file__ is not None, float(double(torch.ones(()))))
    """
    assert run(program).splitlines() == ["False False", "True 2.0"]


def test_to_count_operations_triton_is_not_imported_and_can_be_later() -> None:
    program = """
        import importlib.util, sys
        from training import price
        print(len(price.flop_registry) > 10, any(name.partition(".")[0] == "triton" for name in sys.modules))
        if importlib.util.find_spec("triton") is not None:
            import triton.runtime.jit
            assert triton.runtime.jit.__file__
        import torch
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            torch.ones(2, 3) @ torch.ones(3, 4)
        print(counter.get_total_flops())
    """
    assert run(program).splitlines() == ["True False", "48"]


def test_a_module_that_is_there_is_not_stood_in_for() -> None:
    import json

    with stand_in("json.decoder", JSONDecoder=None), stand_in("json.none.such", one=1):
        import json.decoder as real

        assert real.JSONDecoder is not None
        assert sys.modules["json"] is json
        assert sys.modules["json.none.such"].one == 1
    assert "json.none.such" not in sys.modules
    assert "json.none" not in sys.modules
