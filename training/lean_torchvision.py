"""torchvision, without torch's compiler.

torchvision imports all of `torch._dynamo`, and with it Triton and SymPy, to ask one question in the pooling layer of
detection networks. That is a second of every start and half a second of every end, for networks that are not used here.
So it is given an answer instead, while it is imported; who needs the compiler later imports the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

import torch  # noqa: F401 - first, so that only torchvision sees the stand-in

__all__ = ["torchvision"]

_PACKAGE: Final = "torch._dynamo"
_ASKED: Final = "torch._dynamo.utils"


@contextmanager
def _without_compiler() -> Iterator[None]:
    package, asked = ModuleType(_PACKAGE), ModuleType(_ASKED)
    package.__path__ = []
    asked.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    sys.modules |= {_PACKAGE: package, _ASKED: asked}
    try:
        yield
    finally:
        for name, module in ((_PACKAGE, package), (_ASKED, asked)):
            if sys.modules.get(name) is module:
                del sys.modules[name]


if _PACKAGE in sys.modules:
    import torchvision
else:
    try:
        with _without_compiler():
            import torchvision
    except ImportError:  # another torchvision, which asks more
        import torchvision
