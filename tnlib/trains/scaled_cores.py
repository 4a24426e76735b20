"""Chains whose scale is kept apart, as whole powers of two.

A chain of cores can stand for an array of moderate size although products of some of its cores
leave the range of the dtype. So what is carried from core to core is kept near 1, and every index
of the bond where it ends has an exponent of its own: the cores of a sum may hold 1e300 beside
1e-300. Powers of two change no digit.

Exponents are integer arrays in the library of the cores, and constants for derivatives. They are
dear for small cores, and most cores need none: where the sizes of the entries show that no product
can leave the range, all exponents are the int 0 and products are plain (:func:`opened`). Nothing
but :func:`opened`, :func:`is_moderate`, :func:`fits` and :func:`put_back` looks at a value, and
those look at none that is traced, so all can be traced, mapped and differentiated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array

# Stands for the exponent of zero.
_NONE = -(1 << 30)
# Values of all cores that are looked at together.
_SMALL = 1 << 16
# Values that are taken into double precision, which is cheaper than exponents, at one time.
_WIDENED = 1 << 20


def no_exponents(count: int, like: Array) -> Array:
    """`count` exponents that are zero."""
    xp = array_namespace(like)
    return xp.zeros(count, dtype=xp.int32, device=like.device)


def opened(cores: Sequence[Array], size: float = 0) -> tuple[Array, Any]:
    """The product of no cores yet, a matrix (1, 1), and the exponents of its column.

    Those are the int 0 where none are needed: where no product of entries, one of each core or of
    some, and no sum of such products leaves the normal numbers of the dtype. For cores in single
    precision the matrix is in double, and so will be what is made of it, where that has the range
    and takes little memory; `size` values are computed from them.
    """
    xp, dtype = array_namespace(cores[0]), cores[0].dtype
    wide = backend.double(xp, dtype)
    may_widen = max(size, *[math.prod(core.shape) for core in cores]) <= _WIDENED
    exponents = reach(cores, _room(wide if may_widen else dtype))
    plain = exponents <= _room(dtype)
    if not plain and may_widen and exponents <= _room(wide):
        plain, dtype = True, wide
    one = xp.ones((1, 1), dtype=dtype, device=cores[0].device)
    return one, 0 if plain else no_exponents(1, one)


def reach(cores: Sequence[Array], enough: float) -> float:
    """Exponent that no product of entries, one of each core or of some, exceeds in size.

    Sums over bonds and modes included. Where a cheap bound is `enough`, that one. Infinite for
    cores with nan or inf, and where it is not found out: for those that are traced, or not in the
    CPU's memory.
    """
    seen = _seen(cores)
    if seen is None:
        return math.inf
    if sum([values.size for values in seen.values()]) <= _SMALL:
        # What bounds all cores together takes few calls, and mostly shows enough.
        high, low = _bounds(np.concatenate(list(seen.values()), axis=None))
        if len(cores) * max(high, -low) <= enough:
            return len(cores) * max(high, -low)
    bounds = {number: _bounds(values) for number, values in seen.items()}
    high, low = (sum([bounds[id(core)][k] for core in cores]) for k in (0, 1))
    return max(high, -low)


def _bounds(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Exponents, at least 0 and at most 0: above the norm of the numbers and below the least.

    Contractions of arrays are bounded by the product of their norms.
    """
    largest, smallest, squared = 0.0, math.inf, 0.0
    for block in backend.blocks(values.reshape(-1), _SMALL):
        sizes = np.abs(block)
        high, low = float(sizes.max()), float(sizes.min())
        if not high < math.inf:
            return math.inf, 0.0
        if low == 0.0 < high:
            low = float(sizes[sizes > 0.0].min())
        largest, smallest = max(largest, high), min(smallest, low or math.inf)
        squared += float(np.vdot(block, block))
    if largest == 0.0:
        return 0.0, 0.0
    above = math.frexp(largest)[1] + values.size.bit_length()
    if squared < math.inf:
        above = min(math.frexp(math.sqrt(squared))[1] + 1, above)
    return max(above, 0), min(math.frexp(smallest)[1] - 1, 0)


def _seen(cores: Sequence[Array]) -> dict[int, np.ndarray[Any, Any]] | None:
    """The real numbers that each core is made of; None where they should not be looked at.

    By the identity of the core, since one may come twice.
    """
    distinct = {id(core): core for core in cores}
    if isinstance(cores[0], np.ndarray):
        if not backend.is_complex(cores[0].dtype):
            return distinct
        return {number: backend.real_view(core) for number, core in distinct.items()}
    if sys.modules["torch"].jit.is_tracing():
        return None
    if any(core.device.type != "cpu" or backend.is_traced(core) for core in distinct.values()):
        return None
    return {
        number: backend.to_numpy(backend.real_view(core.detach()))
        for number, core in distinct.items()
    }


@lru_cache(maxsize=64)
def _room(dtype: Any) -> int:
    """Exponents that products may reach with room for all digits of what cancels."""
    return _limit(dtype) + round(math.log2(backend.unit_roundoff(dtype)))


def met(carried: Array, bond: Any, core: Array) -> tuple[Array, Array, Any]:
    """A matrix (m, r) and a core (r, n, s), brought to where their product is near 1.

    ``matrix @ diag(2^bond) @ core`` is the product of the two that are returned, of which each
    index s is to be multiplied with 2 to the exponent that is returned with them.
    """
    if isinstance(bond, int):
        return carried, backend.astype(core, carried.dtype), bond
    xp = array_namespace(carried, core)
    columns, dead = _exponents(carried, 0)
    blocks, blank = _exponents(core, 1)
    rows, empty = xp.max(xp.where(blank, _NONE, blocks), axis=1), xp.all(blank, axis=1)
    top = xp.max(xp.where(dead | empty, _NONE, bond + columns + rows))
    top = xp.where(top == _NONE, 0, top)
    # A column of zeros counts as much as the largest, so that its derivative is not lost.
    even = xp.where(dead, top - xp.where(empty, 0, rows), bond + columns)
    scaled, following = _pushed(core, even, blocks, blank, top)
    return times(carried, bond - even), scaled, following


def step(carried: Array, bond: Any, core: Array) -> tuple[Array, Any]:
    """The product (m * n, s) of a matrix and a core, and the exponents of its columns."""
    carried, core, following = met(carried, bond, core)
    product = carried @ core.reshape(core.shape[0], -1)
    return product.reshape(-1, core.shape[2]), following


def gathered(matrix: Array, bond: Any) -> tuple[Array, Any]:
    """The matrix times diag(2^bond), its largest entry brought near 1, and the exponent for that.

    The exponent is 0 for zeros.
    """
    if isinstance(bond, int):
        size = exponent(matrix)
        return times(matrix, -size), size
    xp = array_namespace(matrix)
    columns, dead = _exponents(matrix, 0)
    top = xp.max(xp.where(dead, _NONE, bond + columns))
    top = xp.where(top == _NONE, 0, top)
    return times(matrix, bond - top), top


def equalized(cores: Sequence[Array]) -> tuple[list[Array], Array]:
    """The same train with every column of every core near 1, and the exponent taken off.

    Scale moves over the bonds from the first core to the last.
    """
    bond = no_exponents(1, cores[0])
    even = []
    for core in cores:
        blocks, blank = _exponents(core, 1)
        scaled, bond = _pushed(core, bond, blocks, blank, 0)
        even.append(scaled)
    return even, bond[0]


def _pushed(
    core: Array, bond: Array, blocks: Array, blank: Array, otherwise: Any
) -> tuple[Array, Array]:
    """A core whose rows count 2^bond with columns near 1, and the exponents taken off those."""
    xp = array_namespace(core)
    following = xp.max(xp.where(blank, _NONE, bond[:, None] + blocks), axis=0)
    following = xp.where(following == _NONE, otherwise, following)
    return times(core, bond[:, None, None] - following[None, None, :]), following


def evened(cores: Sequence[Array], exponent: Any) -> list[Array]:
    """Cores of 2^exponent times the train, all of one size up to a factor of two."""
    xp = array_namespace(*cores)
    sizes = xp.stack([_largest(core) for core in cores])
    total = xp.sum(sizes, dtype=sizes.dtype) + exponent
    count = len(cores)
    extra = xp.arange(count, device=sizes.device) < total % count
    wanted = total // count + xp.where(extra, 1, 0) - sizes
    return [times(core, wanted[k]) for k, core in enumerate(cores)]


def closed(bond: Any) -> Any:
    """The exponent of a bond of one index."""
    return bond if isinstance(bond, int) else bond[0]


def product(left: Array, right: Array, exponent: Any) -> Array:
    """``left @ right`` times 2^exponent, without overflow on the way."""
    if isinstance(exponent, int) and exponent == 0:
        return left @ right
    safe = 3 * _limit(left.dtype) // 4
    before = backend.clipped(exponent, safe)
    result = left @ times(right, before)
    after = exponent - before
    if not backend.is_traced(left) and not after:
        return result
    return times(result, after)


def times(array: Array, exponents: Any) -> Array:
    """`array` times 2^exponents, exactly wherever the result is a normal number.

    In two factors, because the power itself may be out of range.
    """
    if isinstance(exponents, int) and exponents == 0:
        return array
    if backend.is_complex(array.dtype):
        return backend.complex_of(times(array.real, exponents), times(array.imag, exponents))
    if isinstance(exponents, int):
        exponents = no_exponents(1, array)[0] + exponents
    limit = _limit(array.dtype)
    exponents = backend.clipped(exponents, 2 * limit)
    half = exponents // 2
    with backend.out_of_range_allowed():
        scaled = array * backend.power_of_two(half, array.dtype)
        return scaled * backend.power_of_two(exponents - half, array.dtype)


def exponent(array: Array) -> int:
    """Exponent of the power of two above the largest entry; 0 for zeros."""
    return int(_largest(array))


def is_moderate(cores: Sequence[Array]) -> bool:
    """Whether any product of neighbouring cores stays far from overflow and underflow.

    Unknown, so not taken for granted, for cores that are traced.
    """
    limit = _limit(cores[0].dtype) / 3
    if reach(cores, limit) <= limit:
        return True
    if any(map(backend.is_traced, cores)):
        return False
    total = 0.0
    for core in cores:
        xp = array_namespace(core)
        blocks = xp.max(backend.sizes(backend.detached(core)), axis=1)
        largest = xp.max(blocks)
        smallest = xp.min(xp.where(blocks == 0, largest, blocks))
        exponents = [abs(math.frexp(float(size))[1]) for size in (largest, smallest)]
        total += max(exponents) + math.log2(core.shape[2])
    return total < limit


def fits(core: Array, dtype: Any, exponent: int = 0) -> bool:
    """Whether `dtype` holds the largest entry of the core times 2^exponent to full precision."""
    if backend.is_traced(core):
        return True
    largest = backend.magnitude(backend.detached(core))
    if not 0.0 < largest < math.inf:
        return True
    low, high = backend.exponent_range(dtype)
    digits, power = math.frexp(largest)
    power += exponent
    return low <= power < high or (power == high and digits <= 1 - backend.unit_roundoff(dtype))


def put_back(cores: Sequence[Array], exponent: int, dtype: Any, at: Sequence[int]) -> list[Array]:
    """Cores of 2^exponent times the train, in a wider dtype than `dtype`, which is to hold them.

    The cores `at` take equal parts of the exponent where `dtype` then holds them; otherwise the
    scale of all cores becomes even.
    """
    share, rest = divmod(exponent, len(at))
    if rest == 0 and all(fits(cores[k], dtype, share) for k in at):
        return [times(core, share) if k in at else core for k, core in enumerate(cores)]
    return evened(cores, exponent)


def _exponents(array: Array, axis: int) -> tuple[Array, Array]:
    """Exponents of the powers of two above the largest along an axis, and where that is zero."""
    xp = array_namespace(array)
    largest = xp.max(backend.sizes(backend.detached(array)), axis=axis)
    return backend.frexp_exponents(largest), largest == 0


def _largest(array: Array) -> Array:
    return _exponents(array.reshape(-1), 0)[0]


@lru_cache(maxsize=64)
def _limit(dtype: Any) -> int:
    """Exponent of the largest power of two whose inverse is a normal number too."""
    return -backend.exponent_range(dtype)[0] + 1
