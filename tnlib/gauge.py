"""Gauges of a tensor train: the freedom to insert X X^{-1} on a bond.

In the *left-canonical* gauge every core but the last has orthonormal columns, so the last one
carries the norm. In the *balanced* gauge the singular values Lambda of every bond are shared
evenly: each core is Lambda^{1/2} Gamma Lambda^{1/2} in Vidal's notation (Phys. Rev. Lett. 91,
147902, 2003). For a matrix and one bond this is A = U S^{1/2}, B = S^{1/2} V^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array
from tnlib._basis import NOISE


def balance(cores: Sequence[Array], center: int | None) -> tuple[Array, ...]:
    """Balanced cores of the same train, from left-canonical (r, n, r) cores.

    One sweep from right to left finds the singular values of every bond. Those that are only
    rounding are dropped, and the bond shrinks. Half precision is computed in float32.
    """
    if center != len(cores) - 1:
        raise ValueError(
            f"balancing starts from the left-canonical gauge (center={len(cores) - 1}), got "
            f"center={center}; decompose with tt_svd or mpo_decompose first"
        )
    xp = array_namespace(*cores)
    out = cores[0].dtype
    moving = [_array.astype(core, _array.working_dtype(xp, out)) for core in cores]
    roots: list[Array] = [xp.ones(1, dtype=_real(xp, moving[0]), device=moving[0].device)]
    for k in range(len(moving) - 1, 0, -1):
        bond, mode, right = moving[k].shape
        left, values, rows = xp.linalg.svd(
            moving[k].reshape(bond, mode * right), full_matrices=False
        )
        kept = _resolved(xp, values)
        moving[k] = rows[:kept].reshape(-1, mode, right)
        weighted = left[:, :kept] * values[None, :kept]
        moving[k - 1] = xp.tensordot(moving[k - 1], weighted, axes=1)
        roots.append(xp.sqrt(values[:kept]))
    roots.append(xp.ones_like(roots[0]))
    roots.reverse()
    # roots[k] stands on the left of core k; the first core already carries its bond's values.
    for k, core in enumerate(moving):
        before = roots[k] if k > 0 else xp.ones_like(roots[0])
        moving[k] = before[:, None, None] * core * _inverse(xp, roots[k + 1])
    return tuple(_array.astype(core, out) for core in moving)


def _real(xp: Any, array: Array) -> Any:
    return xp.abs(array.reshape(-1)[:1]).dtype


def _resolved(xp: Any, values: Array) -> int:
    """How many descending singular values are more than rounding; at least one."""
    floor = values[0] * (NOISE * _array.unit_roundoff(xp, values.dtype))
    return max(int(xp.count_nonzero(values > floor)), 1)


def _inverse(xp: Any, roots: Array) -> Array:
    """Reciprocals; zero stays zero, as for the zero array."""
    safe = xp.where(roots > 0, roots, xp.ones_like(roots))
    return xp.where(roots > 0, 1.0 / safe, xp.zeros_like(roots))
