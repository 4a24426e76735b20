"""The arithmetic that the package computes in, whatever the caller has switched on.

Decompositions and formats choose their own precision. So they compute as if there were no
``torch.autocast``, which would turn the products of float32 data into bfloat16 ones, and a number
that underflows becomes zero in silence, also where ``numpy.seterr`` makes it an error. What had to
be computed in another way than usual is noted for the record of the result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import numpy as np

# Device types with an autocast of their own.
_DEVICES = ("cpu", "cuda", "xpu", "mps")
# What was computed in another way, within the entry point that runs; None outside of all.
_notes: ContextVar[tuple[str, ...] | None] = ContextVar("notes", default=None)


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
        stack.enter_context(_own_notes())
        yield


@contextmanager
def _own_notes() -> Iterator[None]:
    """Collect notes, and hand them on to the entry point that called this one."""
    outer = _notes.get()
    _notes.set(())
    try:
        yield
    finally:
        inner = notes()
        _notes.set(outer)
        for text in inner:
            note(text)


def note(text: str) -> None:
    """Note once, for the entry point that runs, what was computed in another way than usual."""
    noted = _notes.get()
    if noted is not None and text not in noted:
        _notes.set((*noted, text))


def notes() -> tuple[str, ...]:
    """What was noted since the entry point that runs was called."""
    return _notes.get() or ()
