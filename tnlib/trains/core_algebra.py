"""Algebra on the bare cores of a tensor train.

Every function takes cores of shape (r, n, r), whatever the format that they belong to. Sums have
bonds of r + s, elementwise products of r * s (Oseledets, SIAM J. Sci. Comput. 33, 2011,
section 4); neither forms the array. All are differentiable on torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common import formatting
from tnlib.trains import entry_products, scaled_cores


def dense(cores: Sequence[Array]) -> Array:
    """The flat array that the cores stand for, in their dtype.

    Raises
    ------
    ValueError
        If no array can have so many entries.
    """
    out, count = cores[0].dtype, math.prod([core.shape[1] for core in cores])
    if count >= 2**63:
        raise ValueError(
            f"the dense array would have {formatting.number(count)} entries; index it, or take "
            "inner products"
        )
    left, right, exponent = halves(widened(cores))
    flat = scaled_cores.product(left, right, exponent).reshape(-1)
    return backend.narrowed(flat, out)


def halves(cores: Sequence[Array]) -> tuple[Array, Array, Any]:
    """Two matrices and an exponent of two: their product times the power is the array.

    They are near 1, or the exponent is the int 0 and all their products are in range. They meet at
    the bond where they are smallest.
    """
    modes = [core.shape[1] for core in cores]
    sizes = [
        (math.prod(modes[:k]) + math.prod(modes[k:])) * cores[k].shape[0] for k in range(len(cores))
    ]
    bond = sizes.index(min(sizes[1:] or sizes))
    left, exponents = _chained(*scaled_cores.opened(cores, math.prod(modes)), cores[:bond])
    left, first, exponents = scaled_cores.met(left, exponents, cores[bond])
    rank, _, following = first.shape
    right, exponents = _chained(first.reshape(-1, following), exponents, cores[bond + 1 :])
    return left, right.reshape(rank, -1), scaled_cores.closed(exponents)


def _chained(matrix: Array, bond: Any, cores: Sequence[Array]) -> tuple[Array, Any]:
    """A matrix (m, r) times cores: (m * n_1 ... n_d, r), and the exponents of its columns."""
    for core in cores:
        matrix, bond = scaled_cores.step(matrix, bond, core)
    return matrix, bond


def _one(like: Array) -> Array:
    xp = array_namespace(like)
    return xp.ones((1, 1), dtype=like.dtype, device=like.device)


def residual(data: Array, cores: Sequence[Array], exponent: int) -> float:
    """Sum of squares of ``data`` minus the cores times 2^-exponent."""
    left, right, scale = halves([backend.computable(core, data) for core in cores])
    right = scaled_cores.times(right, scale - exponent)
    return backend.residual_energy(data.reshape(left.shape[0], -1), left, right)


def add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    """Cores of the sum: block-diagonal, side by side at the first core, stacked at the last."""
    xp = array_namespace(*left, *right)
    if len(left) == 1:
        return [left[0] + right[0]]
    inner = [_block_diagonal(xp, a, b) for a, b in zip(left[1:-1], right[1:-1], strict=True)]
    first = xp.concat([left[0], right[0]], axis=2)
    last = xp.concat([left[-1], right[-1]], axis=0)
    return [first, *inner, last]


def _block_diagonal(xp: Any, a: Array, b: Array) -> Array:
    above = xp.zeros((*a.shape[:2], b.shape[2]), dtype=b.dtype, device=b.device)
    below = xp.zeros((b.shape[0], *a.shape[1:]), dtype=a.dtype, device=a.device)
    upper, lower = xp.concat([a, above], axis=2), xp.concat([below, b], axis=2)
    return xp.concat([upper, lower], axis=0)


def negated(cores: Sequence[Array]) -> list[Array]:
    """Cores of the array with the other sign."""
    return [-cores[0], *cores[1:]]


def hadamard(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    """Cores of the elementwise product: Kronecker products over the bonds."""

    def product(_: int, a: Array, b: Array) -> Array:
        both = a[:, None, :, :, None] * b[None, :, :, None, :]
        return both.reshape(a.shape[0] * b.shape[0], a.shape[1], a.shape[2] * b.shape[2])

    return multiplied(product, left, right)


def multiplied(
    product: Callable[[int, Array, Array], Array], left: Sequence[Array], right: Sequence[Array]
) -> list[Array]:
    """Products of the cores number k of two trains of one dtype, for all k.

    Where a product would leave the range of the dtype, scale moves between the cores.
    """
    out, order = left[0].dtype, len(left)
    cores = [*widened(left), *widened(right)]
    exponent = scaled_cores.opened(cores, math.inf)[1]
    safe = isinstance(exponent, int)
    if safe:
        left, right = cores[:order], cores[order:]
    else:
        (left, ours), (right, theirs) = tamed(left), tamed(right)
        exponent = ours + theirs
    found = [product(k, a, b) for k, (a, b) in enumerate(zip(left, right, strict=True))]
    if safe and found[0].dtype == out:
        return found
    if not isinstance(exponent, int) or not all(scaled_cores.fits(core, out) for core in found):
        found = scaled_cores.evened(found, exponent)
    with backend.out_of_range_allowed():
        return [backend.astype(core, out) for core in found]


def dot(left: Sequence[Array], right: Sequence[Array]) -> Array:
    """The inner product in the working precision of the cores: inf beyond its range, 0 below."""
    return backend.narrowed(scaled_cores.times(*inner(left, right)), _common(left[0], right[0]))


def _common(*cores: Array) -> Any:
    """The dtype in which cores are computed together."""
    xp = array_namespace(*cores)
    return backend.working_dtype(xp, xp.result_type(*cores))


def inner(left: Sequence[Array], right: Sequence[Array]) -> tuple[Array, Any]:
    """Sum of ``conj(left) * right`` over all entries: a number and an exponent of two.

    One sweep over the bonds, O(n r^3) a core. In at least single precision, and in double where
    that spares exponents.
    """
    dtype = _common(left[0], right[0])
    both, order = [backend.astype(core, dtype) for core in (*left, *right)], len(left)
    carried, ours = scaled_cores.opened(both)
    theirs = ours
    for a, b in zip(both[:order], both[order:], strict=True):
        carried, b, theirs = scaled_cores.met(carried, theirs, b)
        moved = carried @ b.reshape(b.shape[0], -1)
        flipped, a, ours = scaled_cores.met(moved.mT, ours, a)
        moved = flipped.mT.reshape(-1, b.shape[2])
        carried = backend.adjoint(a.reshape(-1, a.shape[2])) @ moved
    return carried[0, 0], scaled_cores.closed(ours + theirs)


def entry(cores: Sequence[Array]) -> Array:
    """The one entry of cores with modes of size 1, an array without axes."""
    wide = widened(cores)
    if scaled_cores.is_moderate(wide):
        product, exponents = _chained(*scaled_cores.opened(wide), wide)
        number = scaled_cores.times(product[0, 0], scaled_cores.closed(exponents))
        return backend.narrowed(number, cores[0].dtype)
    xp = array_namespace(*cores)
    matrices = [
        backend.astype(xp.permute_dims(core, (1, 0, 2)), backend.double(xp, core.dtype))
        for core in cores
    ]
    number = entry_products.product(matrices, entry_products.known(matrices)).reshape(())
    with backend.out_of_range_allowed():
        return backend.astype(number, cores[0].dtype)


def without(cores: Sequence[Array], kept: Sequence[bool]) -> list[Array]:
    """Cores of the train without some modes of size 1, at least one of which is kept.

    Scale moves between the cores where a product would leave the range of the dtype.
    """
    out, cores = cores[0].dtype, widened(cores)
    xp = array_namespace(*cores)
    moderate = scaled_cores.is_moderate(cores)
    made: list[Array] = []
    matrix, exponents = _one(cores[0]), scaled_cores.no_exponents(1, cores[0])
    for core, keep in zip(cores, kept, strict=True):
        rows, (rank, mode, following) = matrix.shape[0], core.shape
        if moderate:
            matrix = (matrix @ core.reshape(rank, -1)).reshape(-1, following)
        else:
            matrix, exponents = scaled_cores.step(matrix, exponents, core)
        if keep:
            made.append(matrix.reshape(rows, mode, following))
            matrix = xp.eye(following, dtype=core.dtype, device=core.device)
    made[-1] = xp.tensordot(made[-1], matrix, axes=1)
    if not moderate or not all(scaled_cores.fits(core, out) for core in made):
        made = scaled_cores.evened(made, exponents[0])
    with backend.out_of_range_allowed():
        return [backend.astype(core, out) for core in made]


def scaled(
    cores: Sequence[Array], factor: Any, position: int, *, inverse: bool = False
) -> tuple[list[Array], bool]:
    """Cores of the array times or divided by a number, and whether just one core was changed.

    One core is multiplied, unless it would leave the range of the dtype: then all are.
    """
    plain, wide = cores[position], widened(cores)
    out = (plain[:0] * factor).dtype
    with backend.out_of_range_allowed():
        changed = wide[position] / factor if inverse else wide[position] * factor
    alone = _as_it_should(wide[position], changed, factor, out)
    if alone:
        wide[position] = changed
    else:
        size = _power_above(factor)
        rest = factor * 2.0 ** (-size // 2) * 2.0 ** (-size - (-size // 2))
        wide = spread(cores, -size if inverse else size)
        wide[position] = wide[position] / rest if inverse else wide[position] * rest
    with backend.out_of_range_allowed():
        return [backend.astype(core, out) for core in wide], alone


def _as_it_should(core: Array, changed: Array, factor: Any, dtype: Any) -> bool:
    """Whether a core that was changed by a factor is within `dtype`, where it can be."""
    if backend.is_traced(core) or backend.is_traced(factor):
        return True
    before, after = (backend.magnitude(backend.detached(values)) for values in (core, changed))
    possible = 0 < before < math.inf and _power_above(factor) is not None
    return not possible or (after > 0 and after < math.inf and scaled_cores.fits(changed, dtype))


def _power_above(number: Any) -> Any:
    """Exponent of the power of two above a number; None for zero, nan and infinities."""
    if backend.is_torch(number):
        number = number.detach().item()
    size = max(abs(number.real), abs(number.imag))
    return math.frexp(size)[1] if 0 < size < math.inf else None


def tamed(cores: Sequence[Array]) -> tuple[list[Array], Any]:
    """Cores in at least single precision, none far from 1, and an exponent of two.

    The cores as they are and the int 0 where neighbours can be multiplied as they are.
    """
    wide = widened(cores)
    return (wide, 0) if scaled_cores.is_moderate(wide) else scaled_cores.equalized(wide)


def spread(cores: Sequence[Array], exponent: Any) -> list[Array]:
    """Cores of 2^exponent times the train, of one size, in at least single precision."""
    even, taken = tamed(cores)
    return scaled_cores.evened(even, exponent + taken)


def widened(cores: Sequence[Array]) -> list[Array]:
    """Cores in at least single precision."""
    dtype = backend.working_dtype(array_namespace(cores[0]), cores[0].dtype)
    return [backend.astype(core, dtype) for core in cores]
