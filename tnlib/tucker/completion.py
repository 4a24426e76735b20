"""Tucker decompositions of arrays with missing entries, by filling them in.

Where entries are missing, those of the last approximation are taken and the whole array is swept
again: expectation and maximisation for normal noise (Kiers, Psychometrika 62, 1997). The error over
the observed entries is at most that over the filled array, which is zero where it was filled in, so
it never rises. Every sweep alone is slow where much is missing: the filled entries are extrapolated
along their last change (Nesterov, 1983), from scratch wherever that raises the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg.basis import resolution
from tnlib.linalg.preparation import Prepared
from tnlib.tucker.format import Tucker, computed, multiplied

# Factors by mode.
Factors: TypeAlias = Mapping[int, Array]
Sweep: TypeAlias = Callable[[Array, Factors], tuple[Factors, Array, tuple[str, ...]]]

# Changes of the error in a row that must be small: one may be where the extrapolation turns.
_SETTLED = 3


@dataclass(frozen=True)
class Course:
    """Where an iteration ended, and how it went there."""

    factors: Factors
    core: Array
    kernels: tuple[str, ...]
    trace: tuple[float, ...]
    converged: bool

    @property
    def reason(self) -> str:
        """Why it stopped, in words."""
        if self.converged:
            return "a sweep changed the error by less than tol"
        return "max_iter was reached"


def checked(array: Array, mask: Any) -> Array:
    """A mask for `array`: boolean, of its shape, library and device, with observed entries."""
    xp = backend.namespace(array, mask)
    mask = backend.detached(backend.base(mask))
    if mask.dtype != xp.bool:
        raise TypeError(
            f"mask must be boolean, True where an entry is observed, got {mask.dtype}; pass "
            "mask != 0"
        )
    if tuple(mask.shape) != tuple(array.shape):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected that of X, {tuple(array.shape)}"
        )
    if not bool(xp.any(mask)):
        raise ValueError("mask is False everywhere: no entry is observed")
    return mask.to(array.device) if backend.is_torch(mask) else mask


def filled(array: Array, mask: Array, values: Any) -> Array:
    """`array` where it is observed, `values` elsewhere."""
    xp = array_namespace(array)
    values = xp.asarray(values, dtype=array.dtype, device=array.device)
    return xp.where(mask, array, values)


def mean(data: Array, mask: Array) -> Any:
    """The mean of the observed entries of data that are zero elsewhere."""
    xp = array_namespace(data)
    total = xp.sum(data, dtype=backend.double(xp, data.dtype))
    return backend.to_numpy(total).item() / int(xp.count_nonzero(mask))


def iterate(
    data: Array,
    mask: Array,
    start: Array,
    factors: Factors,
    sweep: Sweep,
    energy: float,
    tolerance: float,
    sweeps: int,
) -> Course:
    """Sweep and fill in until the error over observed entries settles; `data` is zero elsewhere."""
    trace: list[float] = []
    settled = steps = 0
    guess, best, model = start, None, None
    while len(trace) < sweeps and settled < _SETTLED:
        found = sweep(guess, factors)
        dense = multiplied(found[1], found[0])
        error = math.sqrt(_missed(data, mask, dense) / energy)
        if best is not None and steps and not error <= trace[-1]:
            trace.append(trace[-1])
            guess, steps = filled(data, mask, model), 0
            continue
        change = trace[-1] - error if best is not None else math.inf
        still = abs(change) <= tolerance or error <= resolution(data.dtype)
        settled = settled + 1 if still else 0
        trace.append(error)
        momentum = steps / (steps + 3)
        ahead = dense if model is None else dense + momentum * (dense - model)
        guess, best, model, steps = filled(data, mask, ahead), found, dense, steps + 1
        factors = found[0]
    assert best is not None
    return Course(best[0], best[1], best[2], tuple(trace), settled >= _SETTLED)


def relative_error(prepared: Prepared, mask: Array, result: Tucker[Any]) -> float:
    """Residual of `result` over the observed entries of data that are zero elsewhere."""
    core, factors = computed(prepared, result, range(prepared.data.ndim))
    dense = multiplied(core, factors)
    return math.sqrt(_missed(prepared.data, mask, dense) / prepared.energy)


def _missed(data: Array, mask: Array, dense: Array) -> float:
    return backend.energy(filled(data - dense, mask, 0.0))
