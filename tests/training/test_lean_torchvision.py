from __future__ import annotations

import subprocess
import sys
import textwrap


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
