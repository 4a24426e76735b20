"""Chains whose scale is kept apart, as whole powers of two.

A chain of cores can stand for an array of moderate size although products of some of its cores
leave the range of the dtype. So what is carried from core to core is kept near 1, and every index
of the bond where it ends has an exponent of its own: the cores of a sum may hold 1e300 beside
1e-300. Powers of two change no digit.

Exponents are integer arrays in the library of the cores, and constants for derivatives. Nothing
here but :func:`is_moderate` and :func:`put_back` looks at a value, so all of it can be traced,
mapped and differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array

# Stands for the exponent of zero.
_NONE = -(1 << 30)


def no_exponents(count: int, like: Array) -> Array:
    """`count` exponents that are zero."""
    xp = array_namespace(like)
    return xp.zeros(count, dtype=xp.int32, device=like.device)


def met(carried: Array, bond: Array, core: Array) -> tuple[Array, Array, Array]:
    """A matrix (m, r) and a core (r, n, s), brought to where their product is near 1.

    ``matrix @ diag(2^bond) @ core`` is the product of the two that are returned, of which each
    index s is to be multiplied with 2 to the exponent that is returned with them.
    """
    xp = array_namespace(carried, core)
    columns, dead = _exponents(carried, 0)
    blocks, blank = _exponents(core, 1)
    rows, empty = xp.max(xp.where(blank, _NONE, blocks), axis=1), xp.all(blank, axis=1)
    reach = xp.max(xp.where(dead | empty, _NONE, bond + columns + rows))
    reach = xp.where(reach == _NONE, 0, reach)
    # A column of zeros counts as much as the largest, so that its derivative is not lost.
    even = xp.where(dead, reach - xp.where(empty, 0, rows), bond + columns)
    scaled, following = _pushed(core, even, blocks, blank, reach)
    return times(carried, bond - even), scaled, following


def step(carried: Array, bond: Array, core: Array) -> tuple[Array, Array]:
    """The product (m * n, s) of a matrix and a core, and the exponents of its columns."""
    carried, core, following = met(carried, bond, core)
    product = carried @ core.reshape(core.shape[0], -1)
    return product.reshape(-1, core.shape[2]), following


def gathered(matrix: Array, bond: Array) -> tuple[Array, Array]:
    """The matrix times diag(2^bond), its largest entry brought near 1, and the exponent for that.

    The exponent is 0 for zeros.
    """
    xp = array_namespace(matrix)
    columns, dead = _exponents(matrix, 0)
    reach = xp.max(xp.where(dead, _NONE, bond + columns))
    reach = xp.where(reach == _NONE, 0, reach)
    return times(matrix, bond - reach), reach


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


def product(left: Array, right: Array, exponent: Array) -> Array:
    """``left @ right`` times 2^exponent, without overflow on the way."""
    safe = 3 * _limit(left.dtype) // 4
    before = _array.clipped(exponent, safe)
    result = left @ times(right, before)
    after = exponent - before
    if not _array.is_traced(left) and not after:
        return result
    return times(result, after)


def times(array: Array, exponents: Any) -> Array:
    """`array` times 2^exponents, exactly wherever the result is a normal number.

    In two factors, because the power itself may be out of range.
    """
    if isinstance(exponents, int) and exponents == 0:
        return array
    if _array.is_complex(array.dtype):
        return _array.complex_of(times(array.real, exponents), times(array.imag, exponents))
    if isinstance(exponents, int):
        exponents = no_exponents(1, array)[0] + exponents
    limit = _limit(array.dtype)
    exponents = _array.clipped(exponents, 2 * limit)
    half = exponents // 2
    with _array.out_of_range_allowed():
        scaled = array * _array.power_of_two(half, array.dtype)
        return scaled * _array.power_of_two(exponents - half, array.dtype)


def exponent(array: Array) -> int:
    """Exponent of the power of two above the largest entry; 0 for zeros."""
    return int(_largest(array))


def is_moderate(cores: Sequence[Array]) -> bool:
    """Whether any product of neighbouring cores stays far from overflow and underflow.

    Unknown, so not taken for granted, for cores that are traced.
    """
    if any(map(_array.is_traced, cores)):
        return False
    xp = array_namespace(*cores)
    reach = 0.0
    for core in cores:
        blocks, blank = _exponents(core, 1)
        reach += int(xp.max(xp.abs(xp.where(blank, 0, blocks)))) + math.log2(core.shape[2])
    return reach < _limit(cores[0].dtype) / 3


def fits(core: Array, dtype: Any, exponent: int = 0) -> bool:
    """Whether `dtype` holds the largest entry of the core times 2^exponent to full precision."""
    if _array.is_traced(core):
        return True
    largest = _array.magnitude(_array.detached(core))
    if not 0.0 < largest < math.inf:
        return True
    low, high = _array.exponent_range(dtype)
    digits, power = math.frexp(largest)
    power += exponent
    return low <= power < high or (power == high and digits <= 1 - _array.unit_roundoff(dtype))


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
    largest = xp.max(_array.sizes(_array.detached(array)), axis=axis)
    return _array.frexp_exponents(largest), largest == 0


def _largest(array: Array) -> Array:
    return _exponents(array.reshape(-1), 0)[0]


def _limit(dtype: Any) -> int:
    """Exponent of the largest power of two whose inverse is a normal number too."""
    return -_array.exponent_range(dtype)[0] + 1
