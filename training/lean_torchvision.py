"""torchvision, without torch's compiler.

torchvision imports all of `torch._dynamo`, and with it Triton and SymPy, to ask one question in the pooling layer of
detection networks. That is a second of every start and half a second of every end, for networks that are not used here.
So it is given an answer instead, while it is imported; who needs the compiler later imports the real one.
"""

from __future__ import annotations

import torch  # noqa: F401 - first, so that only torchvision sees the stand-in

from training.stand_ins import stand_in

__all__ = ["torchvision"]

try:
    with stand_in("torch._dynamo.utils", is_compile_supported=lambda device: False):
        import torchvision
except ImportError:  # another torchvision, which asks more
    import torchvision
