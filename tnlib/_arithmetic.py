"""The arithmetic that the package computes in, whatever the caller has switched on.

Decompositions and formats choose their own precision. So they compute as if there were no
``torch.autocast``, which would turn the products of float32 data into bfloat16 ones, and a number
that underflows becomes zero in silence, also where ``numpy.seterr`` makes it an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

# Device types with an autocast of their own.
_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """A context, and a decorator of public functions and methods that compute."""
    with ExitStack() as stack:
        stack.enter_context(np.errstate(under="ignore"))
        torch = sys.modules.get("torch")
        if torch is not None:
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield
