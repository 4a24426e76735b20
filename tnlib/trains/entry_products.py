"""Many entries of a train at once: for each, a product of one matrix from every core.

The products of a batch are carried from core to core as vectors, O(r^2) operations an entry and
core, in double precision. Where the sizes of the numbers show that nothing can be lost on the way
the products are plain; elsewhere they carry exponents (:mod:`tnlib.linalg.scaled_products`), so
that an entry is found wherever it is itself in range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg.scaled_products import Scaled

# Exponents of the largest and smallest numbers of every factor.
Sizes: TypeAlias = list[tuple[int, int]]

# Values of the matrices that are gathered at a time.
_BLOCK = 1 << 21
# Exponents of products that double precision holds with room for sums.
_RANGE = 900
# Bits below which an underflow does not matter.
_BITS = 64


def gathered(cores: Sequence[Array], index: Sequence[Array]) -> Array:
    """Entries (b,) of a train of (r, n, r) cores at b positions, one array of them a core."""
    xp = array_namespace(*cores)
    count = index[0].shape[0]
    if not count:
        return cores[0][0, :0, 0]
    sides, places = zip(*(_slices(*pair) for pair in zip(cores, index, strict=True)), strict=True)
    sizes = known(sides)
    step = max(1, _BLOCK // sum(core.shape[0] * core.shape[2] for core in cores))
    parts = []
    for start in range(0, count, step):
        stop = start + step
        blocks = [side[at[start:stop]] for side, at in zip(sides, places, strict=True)]
        parts.append(product(blocks, sizes))
    with backend.out_of_range_allowed():
        return backend.astype(xp.concat(parts), cores[0].dtype)


def _slices(core: Array, where: Array) -> tuple[Array, Array]:
    """Matrices (m, r, r) in double precision, and which of them is whose: no more than needed."""
    xp = array_namespace(core)
    slices = xp.permute_dims(core, (1, 0, 2))
    if slices.shape[0] > where.shape[0]:
        slices, where = slices[where], xp.arange(where.shape[0], device=where.device)
    return backend.astype(slices, backend.double(xp, core.dtype)), where


def product(matrices: Sequence[Array], sizes: Sizes | None) -> Array:
    """Products (b,) of batches of matrices (b, r, r) in double precision, closed by ones."""
    plain = _plain(matrices, sizes)
    return (_scaled(matrices).plain() if plain is None else plain)[:, 0, 0]


def scaled_product(matrices: Sequence[Array]) -> Scaled:
    """Products of batches of matrices in double precision, with exponents."""
    plain = _plain(matrices, known(matrices))
    return _scaled(matrices) if plain is None else Scaled.of(plain)


def _scaled(matrices: Sequence[Array]) -> Scaled:
    scaled = Scaled.of(matrices[0])
    for matrix in matrices[1:]:
        scaled = scaled @ Scaled.of(matrix)
    return scaled


def _plain(matrices: Sequence[Array], sizes: Sizes | None) -> Array | None:
    """The products as they are, or None if they may have lost something on the way."""
    floor = None if sizes is None else _floor(sizes)
    if floor is None:
        return None
    carried = matrices[0]
    for matrix in matrices[1:]:
        carried = carried @ matrix
    xp = array_namespace(carried)
    return carried if floor == 0.0 or bool(xp.all(xp.abs(carried) >= floor)) else None


def _floor(sizes: Sizes) -> float | None:
    """The size from which a plain product lost nothing on the way; None if it may overflow."""
    top, low, least, growth = 0, 0, 0, 0
    for high, smallest in sizes:
        top, low = top + high, low + smallest
        least, growth = min(least, low), max(growth + high, 0)
        if top > _RANGE:
            return None
    # What is lost on the way can grow by the factors that follow.
    return 0.0 if least > -_RANGE else math.ldexp(1.0, min(growth + _BITS - 1022, 1000))


def known(arrays: Sequence[Array]) -> Sizes | None:
    """Sizes of all that a product is made of; None where torch.func.vmap hides the numbers."""
    try:
        return [_sizes(array) for array in arrays]
    except RuntimeError:
        return None


def _sizes(array: Array) -> tuple[int, int]:
    """Exponents above the largest sum of a product with these, and below its smallest term."""
    xp = array_namespace(array)
    values = xp.abs(backend.real_view(backend.detached(array)))
    high = math.frexp(float(xp.max(values)))[1] + array.shape[1].bit_length()
    nonzero = xp.where(values > 0, values, xp.full_like(values, math.inf))
    low = math.frexp(float(xp.min(nonzero)))[1] - 1
    return high, low
