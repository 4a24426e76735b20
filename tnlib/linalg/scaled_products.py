"""Products of many matrices that neither overflow nor vanish on the way.

Every entry has a power of two of its own, so that a small one beside a large one survives where a
later factor makes up for it. Powers of two are exact, and constants to autograd: values and
derivatives are those of the plain product wherever that has any. Dear, so for products that a
plain computation may lose.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array

# Below all exponents that products of numbers can reach.
_NEVER = -(1 << 40)
# Largest exponent of one factor in double precision.
_MOST = 1000


@dataclass(frozen=True)
class Scaled:
    """A batch of matrices (b, m, n) in double precision, entry by entry ``values * 2^powers``.

    The values are below 1 and not below 1/2, or zero. What is zero has a power too, since its
    derivative has a size.
    """

    values: Array
    powers: Array

    @classmethod
    def of(cls, values: Array, powers: Array | int = 0) -> Scaled:
        """What ``values * 2^powers`` stands for."""
        sizes = exponents(values)
        return cls(times_powers(values, -sizes), sizes + powers)

    def __matmul__(self, other: Scaled) -> Scaled:
        xp = array_namespace(self.values)
        rows = []
        for k in range(self.values.shape[1]):
            terms = self.values[:, k, :, None] * other.values
            powers = self.powers[:, k, :, None] + other.powers
            top = largest(terms, powers, axis=1)
            total = xp.sum(times_powers(terms, powers - top), axis=1, keepdims=True)
            rows.append(Scaled.of(total, top))
        values, found = ([getattr(row, name) for row in rows] for name in ("values", "powers"))
        return Scaled(xp.concat(values, axis=1), xp.concat(found, axis=1))

    def plain(self) -> Array:
        """The matrices; what is out of range is inf or 0."""
        return times_powers(self.values, self.powers)


def largest(values: Array, powers: Array, axis: int | tuple[int, ...]) -> Array:
    """The largest power of what is not zero; of all where all is zero."""
    xp = array_namespace(values)
    top = xp.max(xp.where(values == 0, _NEVER, powers), axis=axis, keepdims=True)
    return xp.where(top > _NEVER, top, xp.max(powers, axis=axis, keepdims=True))


def exponents(values: Array) -> Array:
    """Exponents e of the entries, which are below 2^e; 0 for zero and what is not finite."""
    xp = array_namespace(values)
    parts = xp.abs(backend.real_view(backend.detached(values)))
    sizes = xp.max(parts, axis=-1) if backend.is_complex(values.dtype) else parts
    library = sys.modules["torch"] if backend.is_torch(values) else np
    usable = xp.isfinite(sizes) & (sizes > 0)
    found = library.frexp(xp.where(usable, sizes, xp.ones_like(sizes)))[1]
    return xp.where(usable, xp.astype(found, xp.int64), 0)


def times_powers(values: Array, powers: Array) -> Array:
    """``values * 2^powers``, exactly wherever the result is a normal number."""
    xp = array_namespace(values)
    within = xp.clip(powers, -2 * _MOST, 2 * _MOST)
    half = within // 2
    with backend.out_of_range_allowed():
        return values * _power(xp, half) * _power(xp, within - half)


def _power(xp: Any, exponents: Array) -> Array:
    """2^exponents as float64, made of its bits."""
    return ((exponents + 1023) << 52).view(xp.float64)
