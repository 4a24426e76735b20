"""Gauges of a tensor train: the freedom to insert X X^{-1} on a bond.

In a *canonical* gauge with center c, every core left of c has orthonormal columns and every core
right of it orthonormal rows, so core c carries the norm: left-canonical for the last core,
right-canonical for the first, mixed between (Schollwoeck, Ann. Phys. 326, 2011, section 4.4).
In the *balanced* gauge the singular values Lambda of every bond are shared evenly: each core is
Lambda^{1/2} Gamma Lambda^{1/2} in Vidal's notation (Phys. Rev. Lett. 91, 147902, 2003). For a
matrix and one bond this is A = U S^{1/2}, B = S^{1/2} V^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array, _lapack
from tnlib._array import Array
from tnlib._basis import NOISE, orthogonal_factors


def working(cores: Sequence[Array]) -> list[Array]:
    """Cores for computing: outside autograd, in double, in NumPy where they are in memory.

    Raises
    ------
    ValueError
        If a core is part of an autograd graph, or holds nan or inf.
    """
    xp = array_namespace(*cores)
    plain = [_array.plain(core) for core in cores]
    wide = [_array.astype(core, _array.double(xp, core.dtype)) for core in plain]
    for k, core in enumerate(wide):
        if not _array.magnitude(core) < float("inf"):
            raise ValueError(f"core {k} contains nan or inf")
    return [_array.to_numpy(core) if _array.on_cpu(core) else core for core in wide]


def given_back(cores: Sequence[Array], like: Sequence[Array]) -> tuple[Array, ...]:
    """Computed cores in the library, device and dtype of the cores that they came from."""
    return tuple(_array.restored(_array.owned(core), like[0], like[0].dtype) for core in cores)


def orthogonalized(cores: Sequence[Array], center: int) -> list[Array]:
    """Cores in the canonical gauge with the given center; bonds lose directions of rounding."""
    moving = list(cores)
    for k in range(center):
        rank, mode, bond = moving[k].shape
        columns, factor = orthogonal_factors(moving[k].reshape(rank * mode, bond))
        moving[k] = columns.reshape(rank, mode, -1)
        moving[k + 1] = _times(factor, moving[k + 1])
    for k in range(len(moving) - 1, center, -1):
        rank, mode, bond = moving[k].shape
        matrix = _array.adjoint(moving[k].reshape(rank, mode * bond))
        columns, factor = orthogonal_factors(matrix)
        moving[k] = _array.adjoint(columns).reshape(-1, mode, bond)
        before = moving[k - 1]
        moved = before.reshape(-1, rank) @ _array.adjoint(factor)
        moving[k - 1] = moved.reshape(*before.shape[:2], -1)
    return moving


def canonical(cores: Sequence[Array], center: int) -> tuple[Array, ...]:
    """Cores of the same train in the canonical gauge with the given center."""
    return given_back(orthogonalized(working(cores), center), cores)


def norm(cores: Sequence[Array]) -> float:
    """Frobenius norm: that of the center, after orthogonalising from the right.

    Accurate to the unit roundoff times the norms of the cores, where the root of an inner product
    of a difference would stop at the root of it.
    """
    first = orthogonalized(working(cores), 0)[0]
    largest = _array.magnitude(first)
    if largest == 0.0:
        return 0.0
    return float(largest * _array.energy(first / largest) ** 0.5)


def balance(cores: Sequence[Array], center: int | None) -> tuple[Array, ...]:
    """Balanced cores of the same train.

    One sweep from right to left finds the singular values of every bond. Those that are only
    rounding are dropped, and the bond shrinks. Computed in double precision.
    """
    moving = working(cores)
    if center != len(cores) - 1:
        moving = orthogonalized(moving, len(cores) - 1)
    xp = array_namespace(*moving)
    roots: list[Array] = []
    for k in range(len(moving) - 1, 0, -1):
        bond, mode, right = moving[k].shape
        left, values, rows = _lapack.svd(moving[k].reshape(bond, mode * right))
        kept = resolved(xp, values)
        moving[k] = rows[:kept].reshape(-1, mode, right)
        weighted = left[:, :kept] * values[None, :kept]
        moving[k - 1] = xp.tensordot(moving[k - 1], weighted, axes=1)
        roots.insert(0, xp.sqrt(values[:kept]))
    # roots[k] stands between cores k and k + 1; the first core already carries its bond's values.
    for k, root in enumerate(roots):
        moving[k] = moving[k] * _inverse(xp, root)
        moving[k + 1] = root[:, None, None] * moving[k + 1]
    return given_back(moving, cores)


def _times(matrix: Array, core: Array) -> Array:
    """Multiply a (r, n, r) core from the left."""
    product = matrix @ core.reshape(core.shape[0], -1)
    return product.reshape(-1, *core.shape[1:])


def resolved(xp: Any, values: Array) -> int:
    """How many descending singular values are more than rounding; at least one."""
    floor = values[0] * (NOISE * _array.unit_roundoff(values.dtype))
    return max(int(xp.count_nonzero(values > floor)), 1)


def _inverse(xp: Any, roots: Array) -> Array:
    """Reciprocals; zero stays zero, as for the zero array."""
    safe = xp.where(roots > 0, roots, xp.ones_like(roots))
    return xp.where(roots > 0, 1.0 / safe, xp.zeros_like(roots))
