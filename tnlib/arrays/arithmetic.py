"""The arithmetic that the package computes in, whatever the caller has switched on.

Decompositions and formats choose their own precision. So they compute as if there were no
``torch.autocast``, which would turn the products of float32 data into bfloat16 ones, and a number
that underflows becomes zero in silence, also where ``numpy.seterr`` makes it an error. What had to
be computed in another way than usual is noted for the record of the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

# Device types with an autocast of their own.
_DEVICES = ("cpu", "cuda", "xpu", "mps")
# What was computed in another way, within the entry point that runs; None outside of all.
_notes: ContextVar[tuple[str, ...] | None] = ContextVar("notes", default=None)


class own_arithmetic:
    """A context, and a decorator of public functions and methods that compute."""

    __slots__ = ("_errors", "_outer", "_switched_off")

    def __enter__(self) -> None:
        self._switched_off: list[Any] = []
        self._errors = np.errstate(under="ignore")
        self._errors.__enter__()
        torch = sys.modules.get("torch")
        if torch is not None:
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    off = torch.autocast(device, enabled=False)
                    off.__enter__()
                    self._switched_off.append(off)
        self._outer = _notes.get()
        _notes.set(())

    def __exit__(self, *raised: Any) -> None:
        inner = notes()
        _notes.set(self._outer)
        # What was noted is handed on to the entry point that called this one.
        for text in inner:
            note(text)
        for off in reversed(self._switched_off):
            off.__exit__(*raised)
        self._errors.__exit__(*raised)

    def __call__(self, function: F) -> F:
        """Decorate a function with this context."""

        @wraps(function)
        def computing(*args: Any, **options: Any) -> Any:
            torch = sys.modules.get("torch")
            if torch is not None and torch.compiler.is_compiling():
                # In a graph that is captured there is nothing of NumPy's, and nothing to note.
                with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                    return function(*args, **options)
            with own_arithmetic():
                return function(*args, **options)

        return cast(F, computing)


def note(text: str) -> None:
    """Note once, for the entry point that runs, what was computed in another way than usual."""
    noted = _notes.get()
    if noted is not None and text not in noted:
        _notes.set((*noted, text))


def notes() -> tuple[str, ...]:
    """What was noted since the entry point that runs was called."""
    return _notes.get() or ()
