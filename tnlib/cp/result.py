"""From the terms of an iteration to the decomposition that is returned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.cp.als import Terms
from tnlib.cp.format import CP
from tnlib.cp.mttkrp import Data, gram, hadamard
from tnlib.cp.solve import Course
from tnlib.linalg.preparation import Prepared, verify
from tnlib.result import Info

# Cosine of two terms below which they are said to cancel.
_CANCELLING = -0.95


def result(
    array: Array,
    prepared: Prepared,
    data: Data,
    terms: Terms,
    course: Course,
    row: int = 0,
    kept: Mapping[int, Array] | None = None,
) -> CP[Any]:
    """Terms in the caller's library and dtype, with the error of what is returned.

    They are sorted, but for those with factors that are kept as they are.
    """
    xp = array_namespace(terms.weights)
    weights, factors = terms.weights[0], [factor[0].mT for factor in terms.factors]
    for mode, factor in (kept or {}).items():
        norms = backend.to_numpy(xp.linalg.vector_norm(_double(factor, data), axis=0))
        weights = weights / backend.from_numpy(np.where(norms > 0, norms, 1.0), weights)
        factors[mode] = _own(factor, data.matrix)
    if not kept:
        order = xp.argsort(-weights)
        weights, factors = weights[order], [factor[:, order] for factor in factors]
    weights = backend.times_power_of_two(backend.owned(weights), prepared.exponent)
    out = [
        backend.restored(weights, array, real_dtype(prepared.out)),
        *(backend.restored(factor, array, prepared.out) for factor in factors),
    ]
    error = error_of(data, out, prepared.exponent)
    verify(error, None, prepared.out, course.solvers)
    info = Info(
        tuple(course.solvers),
        (),
        None,
        backend.dtype_name(data.dtype),
        n_iter=len(course.trace),
        converged=course.converged,
        reason=course.reason + _degeneracy(terms),
        trace=tuple(float(errors[row]) for errors in course.trace),
    )
    return CP(out[0], tuple(out[1:]), error=error, error_kind="exact", info=info)


def error_of(data: Data, arrays: Sequence[Array], exponent: int) -> float:
    """Relative error of weights and factors against data that were scaled by 2^-exponent."""
    weights, *factors = (_double(values, data) for values in arrays)
    weights = backend.times_power_of_two(backend.owned(weights), -exponent)
    rows = [factor.mT[None] for factor in factors]
    rows[-1] = rows[-1] * weights[None, :, None]
    return float(data.widened().errors(rows)[0])


def _degeneracy(terms: Terms) -> str:
    """A remark on two terms that nearly cancel, where there are any."""
    cosines = hadamard([gram(backend.to_numpy(factor[0])) for factor in terms.factors]).real
    cosines = cosines * (backend.to_numpy(terms.weights[0]) > 0)
    lowest = float(cosines.min())
    if lowest > _CANCELLING:
        return ""
    return f"; degenerate: two terms nearly cancel (congruence {lowest:.4f})"


def real_dtype(dtype: Any) -> Any:
    """The dtype of the real numbers that numbers of a dtype are made of."""
    if not backend.is_complex(dtype):
        return dtype
    name = {"complex64": "float32", "complex128": "float64"}[backend.dtype_name(dtype)]
    if isinstance(dtype, np.dtype):
        return np.dtype(name)
    return getattr(sys.modules["torch"], name)


def _own(values: Array, like: Array) -> Array:
    """A copy of a given array, in NumPy where `like` is."""
    return backend.owned(backend.computable(values, like))


def _double(values: Array, data: Data) -> Array:
    """A returned array in the library of the data, in double precision."""
    return backend.astype(backend.computable(values, data.matrix), data.double)


def zero(array: Array, rank: int, prepared: Prepared, kept: Mapping[int, Array]) -> CP[Any]:
    """The zero array: weights 0, unit columns but for kept factors, error 0."""
    xp = array_namespace(array)
    weights = xp.zeros(rank, dtype=real_dtype(prepared.out), device=array.device)
    factors = []
    for mode, size in enumerate(array.shape):
        if mode in kept:
            own = _own(kept[mode], prepared.data)
            factors.append(backend.restored(own, array, prepared.out))
            continue
        factor = xp.zeros((size, rank), dtype=prepared.out, device=array.device)
        factor[0] = 1
        factors.append(factor)
    info = Info((), (), None, prepared.compute_name, reason="the array is zero")
    return CP(weights, tuple(factors), error=0.0, error_kind="exact", info=info)
