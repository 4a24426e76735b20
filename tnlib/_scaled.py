"""Numbers with a power of two beside them, so that products of many neither overflow nor vanish.

A batch of matrices is brought to entries below 1 and its exponents are kept as integers. Powers of
two are exact, and constants to autograd, so values and derivatives are those of the plain product
wherever that has any.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array

# Exponents of one factor that single and double precision hold. Twice that is 0 or inf.
_MOST = {"float32": 120, "complex64": 120}


def normalized(batch: Array) -> tuple[Array, Array]:
    """A batch (b, ...) with all entries below 1, and the exponents (b,) that were taken off.

    What is zero, or not finite, is left as it is.
    """
    xp = array_namespace(batch)
    values = _array.real_view(_array.detached(batch))
    largest = xp.max(xp.abs(values).reshape(batch.shape[0], -1), axis=1)
    library = sys.modules["torch"] if _array.is_torch(batch) else np
    exponents = xp.astype(library.frexp(largest)[1], xp.int64)
    usable = xp.isfinite(largest) & (largest > 0)
    exponents = xp.where(usable, exponents, xp.zeros_like(exponents))
    return times_powers(batch, -exponents), exponents


def times_powers(batch: Array, exponents: Array) -> Array:
    """Multiply entry k of a batch by 2^exponents[k], exactly wherever the result is normal."""
    xp = array_namespace(batch)
    most = _MOST.get(_array.dtype_name(batch.dtype), 1000)
    within = xp.clip(exponents, -2 * most, 2 * most)
    half = within // 2
    shape = (batch.shape[0], *(1,) * (batch.ndim - 1))
    with np.errstate(over="ignore"):
        moved = batch * _powers(xp, half, batch).reshape(shape)
        return moved * _powers(xp, within - half, batch).reshape(shape)


def _powers(xp: Any, exponents: Array, like: Array) -> Array:
    """2^exponents, made of their bits, in the real dtype of `like`."""
    doubles = ((exponents + 1023) << 52).view(xp.float64)
    return _array.astype(doubles, _array.real_view(like[:0]).dtype)
