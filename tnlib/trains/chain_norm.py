"""The norm of a chain with its derivatives, at any scale.

The value comes from orthogonalisation, which does not cancel in a difference; its derivatives are
those of the root of <a, a>, which need no derivative of a factorisation. So the norm is

    sqrt(<a, a> - stop(<a, a>) + stop(norm)^2)

where ``stop`` makes a constant, and the second and third term cancel all but the derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.trains import core_algebra, gauge, scaled_cores


def rooted(cores: Sequence[Array]) -> tuple[Array, Any]:
    """The norm of a train of (r, n, r) cores: a double and an exponent of two.

    At zero all derivatives are zero.

    Raises
    ------
    ValueError
        If a core holds nan or inf, unless it is traced.
    """
    if not backend.is_torch(cores[0]):
        return gauge.norm(cores)
    xp = array_namespace(*cores)
    value, exponent = gauge.norm([backend.detached(core) for core in cores])
    if not backend.is_torch(value):
        value, exponent = backend.from_numpy(np.asarray(value), cores[0]), int(exponent)
    if not any(map(backend.is_differentiated, cores)):
        return value, exponent
    squared, power = core_algebra.inner(cores, cores)
    squared = backend.astype(xp.real(squared), xp.float64)
    squared, power = scaled_cores.times(squared, power % 2), power // 2
    exact = scaled_cores.times(value, exponent - power) ** 2
    zero = exact == 0
    root = xp.sqrt(xp.where(zero, 1.0, squared - backend.detached(squared) + exact))
    return xp.where(zero, 0 * squared, root), power


def norm(cores: Sequence[Array]) -> Array:
    """The norm in the working precision of the cores, inf beyond its range and 0 below."""
    root, exponent = rooted(cores)
    return _real(scaled_cores.times(root, exponent), cores[0])


def lognorm(cores: Sequence[Array]) -> Array:
    """The natural logarithm of the norm in double precision, -inf for zero."""
    root, exponent = rooted(cores)
    xp = array_namespace(*cores)
    zero = root == 0
    if not isinstance(exponent, int):
        exponent = backend.astype(exponent, root.dtype)
    logarithm = xp.log(xp.where(zero, 1.0, root)) + math.log(2) * exponent
    return xp.where(zero, -math.inf, logarithm)


def normalized(cores: Sequence[Array], center: int | None) -> list[Array]:
    """Cores of the train over its norm.

    The center is scaled, or all cores where there is none.

    Raises
    ------
    ValueError
        If the norm is zero.
    """
    root, exponent = rooted(cores)
    xp = array_namespace(*cores)
    if not backend.is_traced(root) and not root:
        raise ValueError("the norm is zero, and no multiple of the zero array has norm 1")
    above = backend.frexp_exponents(backend.detached(root))
    root, exponent = scaled_cores.times(root, -above), exponent + above
    position = len(cores) - 1 if center is None else center
    out = cores[0].dtype
    if center is None:
        wide = core_algebra.spread(cores, -exponent)
    else:
        wide = core_algebra.widened(cores)
        wide[center] = scaled_cores.times(wide[center], -exponent)
    wide[position] = wide[position] / _real(xp.where(root == 0, 1.0, root), wide[position])
    return [backend.astype(core, out) for core in wide]


def _real(value: Array, core: Array) -> Array:
    """`value` as an array without axes, in the real type of the precision of a core."""
    xp = array_namespace(core)
    dtype: Any = backend.working_dtype(xp, core.dtype)
    if backend.is_complex(dtype):
        dtype = xp.float32 if backend.dtype_name(dtype) == "complex64" else xp.float64
    with backend.out_of_range_allowed():
        return backend.astype(value if backend.is_torch(value) else xp.asarray(value), dtype)
