"""From the terms of an iteration to the decomposition that is returned."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array
from tnlib._prepare import Prepared, verify
from tnlib.cp.als import Terms
from tnlib.cp.format import CP
from tnlib.cp.products import Data, gram, hadamard
from tnlib.cp.solve import Course
from tnlib.info import Info

# Cosine of two terms below which they are said to cancel.
_CANCELLING = -0.95


def result(
    array: Array, prepared: Prepared, data: Data, terms: Terms, course: Course, row: int = 0
) -> CP:
    """Sorted terms in the caller's library and dtype, with the error of what is returned."""
    xp = array_namespace(terms.weights)
    order = xp.argsort(-terms.weights[0])
    weights = _array.owned(terms.weights[0][order])
    weights = _array.times_power_of_two(weights, prepared.exponent)
    columns = [factor[0][order].mT for factor in terms.factors]
    out = [_array.restored(values, array, prepared.out) for values in (weights, *columns)]
    error = error_of(data, out, prepared.exponent)
    verify(error, None, prepared.out, course.solvers)
    info = Info(
        tuple(course.solvers),
        (),
        None,
        _array.dtype_name(data.dtype),
        n_iter=len(course.trace),
        converged=course.converged,
        reason=course.reason + _degeneracy(terms),
        trace=tuple(float(errors[row]) for errors in course.trace),
    )
    return CP(out[0], tuple(out[1:]), error=error, error_kind="exact", info=info)


def error_of(data: Data, arrays: Sequence[Array], exponent: int) -> float:
    """Relative error of weights and factors against data that were scaled by 2^-exponent."""
    weights, *factors = (
        _array.astype(_array.computable(values, data.matrix), data.double) for values in arrays
    )
    weights = _array.times_power_of_two(_array.owned(weights), -exponent)
    rows = [factor.mT[None] for factor in factors]
    rows[-1] = rows[-1] * weights[None, :, None]
    return float(data.widened().errors(rows)[0])


def _degeneracy(terms: Terms) -> str:
    """A remark on two terms that nearly cancel, where there are any."""
    cosines = hadamard([gram(_array.to_numpy(factor[0])) for factor in terms.factors]).real
    cosines = cosines * (_array.to_numpy(terms.weights[0]) > 0)
    lowest = float(cosines.min())
    if lowest > _CANCELLING:
        return ""
    return f"; degenerate: two terms nearly cancel (congruence {lowest:.4f})"


def zero(array: Array, rank: int, prepared: Prepared) -> CP:
    """The zero array: weights 0, unit columns, error 0."""
    xp = array_namespace(array)
    weights = xp.zeros(rank, dtype=prepared.out, device=array.device)
    factors = []
    for size in array.shape:
        factor = xp.zeros((size, rank), dtype=prepared.out, device=array.device)
        factor[0] = 1
        factors.append(factor)
    info = Info((), (), None, prepared.compute_name, reason="the array is zero")
    return CP(weights, tuple(factors), error=0.0, error_kind="exact", info=info)
