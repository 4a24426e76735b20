"""Algebra on the bare cores of a tensor train.

Every function takes cores of shape (r, n, r), whatever the format that they belong to. Sums have
bonds of r + s, elementwise products of r * s (Oseledets, SIAM J. Sci. Comput. 33, 2011,
section 4); neither forms the array. All are differentiable on torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array


def dense(cores: Sequence[Array]) -> Array:
    """The flat array that the cores stand for, in their dtype."""
    out = cores[0].dtype
    left, right = halves(_widened(cores))
    return _array.astype((left @ right).reshape(-1), out)


def halves(cores: Sequence[Array]) -> tuple[Array, Array]:
    """Two matrices whose product holds the array, split at the bond where they are smallest."""
    modes = [core.shape[1] for core in cores]
    if len(cores) == 1:
        xp = array_namespace(cores[0])
        return xp.ones_like(cores[0][:, :1, 0]), cores[0].reshape(1, -1)
    sizes = [
        (math.prod(modes[:k]) + math.prod(modes[k:])) * cores[k].shape[0]
        for k in range(1, len(cores))
    ]
    bond = 1 + sizes.index(min(sizes))
    rank = cores[bond].shape[0]
    return _chained(cores[:bond]).reshape(-1, rank), _chained(cores[bond:]).reshape(rank, -1)


def _chained(cores: Sequence[Array]) -> Array:
    """Contract cores over their bonds to one (r, n_1 ... n_d, r) array."""
    product = cores[0]
    for core in cores[1:]:
        rows, bond = product.shape[0], core.shape[0]
        merged = product.reshape(-1, bond) @ core.reshape(bond, -1)
        product = merged.reshape(rows, -1, core.shape[2])
    return product


def residual(data: Array, cores: Sequence[Array], exponent: int) -> float:
    """Sum of squares of ``data`` minus the cores times 2^-exponent."""
    wide = [_array.computable(core, data) for core in cores]
    if exponent:
        wide[-1] = _array.times_power_of_two(_array.owned(wide[-1]), -exponent)
    left, right = halves(wide)
    return _array.residual_energy(data.reshape(left.shape[0], -1), left, right)


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


def hadamard(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
    """Cores of the elementwise product: Kronecker products over the bonds."""
    cores = []
    for a, b in zip(left, right, strict=True):
        product = a[:, None, :, :, None] * b[None, :, :, None, :]
        rows, columns = a.shape[0] * b.shape[0], a.shape[2] * b.shape[2]
        cores.append(product.reshape(rows, a.shape[1], columns))
    return cores


def inner(left: Sequence[Array], right: Sequence[Array]) -> Array:
    """Sum of ``conj(left) * right`` over all entries, an array without axes.

    One sweep over the bonds, O(n r^3) a core.
    """
    left, right = _widened(left), _widened(right)
    xp = array_namespace(*left, *right)
    dtype = xp.result_type(left[0], right[0])
    carried = xp.ones((1, 1), dtype=dtype, device=left[0].device)
    for a, b in zip(left, right, strict=True):
        a, b = _array.astype(a, dtype), _array.astype(b, dtype)
        moved = (carried @ b.reshape(b.shape[0], -1)).reshape(-1, b.shape[2])
        carried = _array.adjoint(a.reshape(-1, a.shape[2])) @ moved
    return carried[0, 0]


def scaled(cores: Sequence[Array], factor: Any, position: int) -> list[Array]:
    """Cores of ``factor`` times the array: one core is multiplied."""
    return [core * factor if k == position else core for k, core in enumerate(cores)]


def _widened(cores: Sequence[Array]) -> list[Array]:
    """Cores in at least single precision."""
    xp = array_namespace(*cores)
    return [_array.astype(core, _array.working_dtype(xp, core.dtype)) for core in cores]
