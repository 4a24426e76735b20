"""What every decomposition does before and after the algebra.

Choose the precisions, scale the data so that squares neither overflow nor vanish, take rounding
off a tolerance, and refuse a result that is not what was promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg.basis import is_single, resolution

S = TypeVar("S", bound=tuple[Any, ...])

# Energies between which data in single or double precision are used as they are.
_MODERATE = {True: (2.0**-40, 2.0**60), False: (2.0**-400, 2.0**400)}


@dataclass(frozen=True)
class Prepared:
    """Data ready for computing.

    Attributes
    ----------
    data : array
        Contiguous, in the computing dtype, times 2^-exponent; not to be changed, since it may be
        the caller's memory. On the CPU it is NumPy's, whatever the library of the input: same
        memory, and one pool of threads.
    exponent : int
        Power of two that was taken off.
    energy : float
        Squared Frobenius norm of `data`; 0 for the zero array.
    out : dtype
        Type of the arrays to return.
    """

    data: Array
    exponent: int
    energy: float
    out: Any

    @property
    def compute_name(self) -> str:
        """Name of the computing dtype."""
        return backend.dtype_name(self.data.dtype)


def prepare(array: Array, dtype: Any, axes: Sequence[int] | None = None) -> Prepared:
    """Cast, transpose by `axes` and scale `array`, copying only where something changes.

    Raises
    ------
    ValueError
        If the array holds nan or inf.
    """
    xp = array_namespace(array)
    out, compute = dtypes(xp, array, dtype)
    moved = array if axes is None else xp.permute_dims(array, tuple(axes))
    if moved.dtype != compute or not _is_contiguous(moved):
        copied = xp.empty(tuple(moved.shape), dtype=compute, device=array.device)
        copied[...] = moved
        moved = copied
    data = backend.to_numpy(moved) if backend.on_cpu(moved) else moved
    with np.errstate(over="ignore", under="ignore"):
        energy = backend.energy(data)
    if is_moderate(energy, data):
        return Prepared(data, 0, energy, out)
    exponent = _exponent(data)
    scaled = backend.times_power_of_two(backend.owned(data), -exponent)
    return Prepared(scaled, exponent, backend.energy(scaled), out)


def is_moderate(energy: float, data: Array) -> bool:
    """Whether squares of data with this energy neither overflow nor vanish."""
    low, high = _MODERATE[is_single(data)]
    return low < energy < high


def dtypes(xp: Any, array: Array, dtype: Any) -> tuple[Any, Any]:
    """The dtype of the arrays to return and of the arithmetic."""
    given = array.dtype
    if xp.isdtype(given, ("bool", "integral")):
        given = backend.default_float(xp)
    out = given if dtype is None else backend.resolve_dtype(xp, dtype)
    if backend.is_complex(given) and not backend.is_complex(out):
        raise TypeError(f"complex data cannot be returned as {backend.dtype_name(out)} arrays")
    wide = xp.result_type(backend.working_dtype(xp, given), backend.working_dtype(xp, out))
    return out, wide


def budget(eps: float | None, count: int, prepared: Prepared) -> float | None:
    """The share of eps that truncation may use, where `count` arrays will be rounded.

    Rounding them is independent of the truncation, so it takes its part in squares; the
    arithmetic's own errors can point the same way and are taken off in full.
    """
    if eps is None:
        return None
    root = math.sqrt(count)
    rounding = root * backend.unit_roundoff(prepared.out)
    arithmetic = root * resolution(prepared.data.dtype)
    floor = rounding + arithmetic
    if eps <= floor:
        raise ValueError(
            f"eps={eps:g} cannot be met: {count} arrays in {backend.dtype_name(prepared.out)} "
            f"computed in {prepared.compute_name} are only accurate to about {floor:.1g}; "
            "ask for a larger eps or a wider dtype="
        )
    return max(math.sqrt(eps**2 - rounding**2) - arithmetic, 0.0)


def within(split: Callable[[float | None], S], share: float | None, total: float) -> S:
    """What `split` finds with a share to discard, or without one where its ranks alone meet it.

    A truncation that spends its part can leave too little to a later one whose rank is limited.
    `split` takes the share and gives a tuple whose last but one entry are discarded energies.
    """
    found = split(share)
    if share is None or math.fsum(found[-2]) <= share**2 * total:
        return found
    whole = split(None)
    return whole if math.fsum(whole[-2]) <= share**2 * total else found


def allowance(
    budget: float | None, total: float, discarded: Sequence[float], remaining: int
) -> float | None:
    """Energy that the next of `remaining` truncations may discard: what is unspent, evenly."""
    if budget is None:
        return None
    return max(budget**2 * total - math.fsum(discarded), 0.0) / remaining


def binds(limits: Sequence[int | None] | None, ranks: Sequence[int]) -> bool:
    """Whether a rank stands at its limit, so that the limit and not a tolerance set it."""
    return any(limit == rank for limit, rank in zip(limits or (), ranks, strict=False))


def verify(error: float, eps: float | None, out: Any, kernels: Sequence[str]) -> None:
    """Refuse a result that is not what was promised."""
    name = backend.dtype_name(out)
    if not math.isfinite(error):
        raise ValueError(
            f"the result overflows {name}: scale the array down, or pass a wider dtype="
        )
    if eps is not None and error > eps:
        raise ValueError(
            f"eps={eps:g} was not met: the {name} arrays found by {', '.join(kernels)} have error "
            f"{error:.3g}; ask for a larger eps, a wider dtype= or method='svd'"
        )


def _exponent(array: Array) -> int:
    """Exponent of the power of two above the largest entry."""
    largest = backend.magnitude(array)
    if not math.isfinite(largest):
        raise ValueError(
            "the array contains nan or inf; replace them before decomposing (a decomposition of "
            "such data has no meaning)"
        )
    return math.frexp(largest)[1]


def _is_contiguous(array: Array) -> bool:
    if backend.is_torch(array):
        return bool(array.is_contiguous()) and not array.is_conj() and not array.is_neg()
    return bool(array.flags.c_contiguous and array.flags.aligned)
