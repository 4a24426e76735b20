"""Gauges of a tensor train: the freedom to insert X X^{-1} on a bond.

In a *canonical* gauge with center c, every core left of c has orthonormal columns and every core
right of it orthonormal rows, so core c carries the norm: left-canonical for the last core,
right-canonical for the first, mixed between (Schollwoeck, Ann. Phys. 326, 2011, section 4.4).
In the *balanced* gauge the singular values Lambda of every bond are shared evenly: each core is
Lambda^{1/2} Gamma Lambda^{1/2} in Vidal's notation (Phys. Rev. Lett. 91, 147902, 2003). For a
matrix and one bond this is A = U S^{1/2}, B = S^{1/2} V^T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack
from tnlib.linalg.basis import orthogonal_factors, resolution
from tnlib.trains import core_algebra, scaled_cores


def working(cores: Sequence[Array]) -> list[Array]:
    """Cores for computing: outside autograd, in double, in NumPy where they are in memory.

    Raises
    ------
    ValueError
        If a core is part of an autograd graph, or holds nan or inf.
    """
    xp = array_namespace(*cores)
    plain = [backend.plain(core) for core in cores]
    wide = [backend.astype(core, backend.double(xp, core.dtype)) for core in plain]
    _check_finite(wide)
    return [backend.to_numpy(core) if backend.on_cpu(core) else core for core in wide]


def _check_finite(cores: Sequence[Array]) -> None:
    for k, core in enumerate(cores):
        if not backend.magnitude(core) < math.inf:
            raise ValueError(f"core {k} contains nan or inf")


def given_back(
    cores: Sequence[Array], like: Sequence[Array], dtype: Any = None
) -> tuple[Array, ...]:
    """Computed cores in the library and device of those that they came from, and their dtype.

    Raises
    ------
    ValueError
        If a core overflows the dtype or vanishes in it.
    """
    out = like[0].dtype if dtype is None else dtype
    name = backend.dtype_name(out)
    advice = "or have it in a wider dtype, as tt_round(..., dtype=) gives it"
    try:
        given = tuple(backend.restored(backend.owned(core), like[0], out) for core in cores)
    except ValueError:
        raise ValueError(f"the result overflows {name}: scale it down, {advice}") from None
    for wide, core in zip(cores, given, strict=True):
        # Only what was rounded to fewer bits can vanish.
        narrow = backend.dtype_name(wide.dtype) != backend.dtype_name(core.dtype)
        if narrow and backend.magnitude(wide) > 0.0 == backend.magnitude(core):
            raise ValueError(f"the result vanishes in {name}: scale it up, {advice}")
    return given


def placed(
    cores: Sequence[Array], center: int, exponent: int, like: Sequence[Array], dtype: Any
) -> tuple[tuple[Array, ...], int | None]:
    """Cores to return with 2^exponent put back, into the center if one core of `dtype` holds it.

    Otherwise all cores share the scale, and there is no center any more.
    """
    alone = scaled_cores.fits(cores[center], dtype, exponent)
    moved = scaled_cores.put_back(cores, exponent, dtype, (center,))
    return given_back(moved, like, dtype), center if alone else None


def distance(left: Sequence[Array], right: Sequence[Array], exponent: int) -> float:
    """Frobenius distance of two trains over 2^exponent, from their orthogonalised difference."""
    ours, theirs = working(left), working(right)
    value, power = norm(core_algebra.add(ours, [-theirs[0], *theirs[1:]]))
    return math.ldexp(float(value), int(power) - exponent)


def orthogonalized(cores: Sequence[Array], center: int) -> tuple[list[Array], int]:
    """Cores in the canonical gauge with the given center, and an exponent of two.

    The largest entry of the center is near 1: the train is 2^exponent times that of the cores.
    Bonds lose directions of rounding.
    """
    middle, start = cores[center], scaled_cores.opened(cores)
    before, left, bond = _swept(cores[:center], *start)
    after, right, marks = _swept(_mirrored(cores[center + 1 :]), *start)
    matrix, bond = scaled_cores.step(left, bond, middle)
    matrix, last, bond = scaled_cores.met(matrix, bond + marks, right.mT[:, None, :])
    matrix, exponent = scaled_cores.gathered(matrix @ last[:, 0, :], bond)
    middle = matrix.reshape(left.shape[0], middle.shape[1], -1)
    return [*before, middle, *_mirrored(after)], int(exponent)


def _swept(cores: Sequence[Array], factor: Array, bond: Any) -> tuple[list[Array], Array, Any]:
    """Cores with orthonormal columns, the matrix that is left, and exponents of its columns."""
    moved = []
    for core in cores:
        rank = factor.shape[0]
        matrix, bond = scaled_cores.step(factor, bond, core)
        columns, factor = orthogonal_factors(matrix)
        moved.append(columns.reshape(rank, core.shape[1], -1))
    return moved, factor, bond


def _mirrored(cores: Sequence[Array]) -> list[Array]:
    """Cores of the train with its modes in the opposite order."""
    return [array_namespace(core).permute_dims(core, (2, 1, 0)) for core in cores[::-1]]


def canonical(cores: Sequence[Array], center: int) -> tuple[Array, ...]:
    """Cores of the same train in the canonical gauge with the given center."""
    moving, exponent = orthogonalized(working(cores), center)
    out = cores[0].dtype
    if len(cores) > 1 and not scaled_cores.fits(moving[center], out, exponent):
        raise ValueError(
            f"{backend.dtype_name(out)} cannot hold the norm, about 2^{exponent}, in one core; "
            "take the gauge of normalized(), and keep lognorm()"
        )
    moving[center] = scaled_cores.times(moving[center], exponent)
    return given_back(moving, cores)


def norm(cores: Sequence[Array]) -> tuple[Array, Any]:
    """Frobenius norm: a number in double precision and an exponent of two.

    That of the last core after orthogonalising from the left, so it is accurate to the unit
    roundoff times the norms of the terms, where the root of an inner product of a difference
    would stop at the root of it. Cores can be traced and mapped. Of those in the CPU's memory it
    is a number of NumPy's.

    Raises
    ------
    ValueError
        If a core holds nan or inf, unless it is traced.
    """
    xp = array_namespace(*cores)
    wide = [backend.astype(core, backend.double(xp, core.dtype)) for core in cores]
    traced = any(map(backend.is_traced, wide))
    if not traced and backend.on_cpu(wide[0]):
        wide = [backend.to_numpy(core) for core in wide]
        xp = array_namespace(*wide)
    factor, bond = scaled_cores.opened(wide)
    if not isinstance(bond, int) and not traced:
        _check_finite(wide)
    for core in wide:
        matrix, bond = scaled_cores.step(factor, bond, core)
        tall = matrix.shape[0] > matrix.shape[1]
        factor = _triangular_factor(matrix) if tall else matrix
    return xp.abs(factor[0, 0]), scaled_cores.closed(bond)


def _triangular_factor(tall: Array) -> Array:
    if backend.is_traced(tall):
        return array_namespace(tall).linalg.qr(tall)[1]
    return lapack.triangular_factor(tall)


def balance(cores: Sequence[Array], center: int | None) -> tuple[Array, ...]:
    """Balanced cores of the same train.

    One sweep from right to left finds the singular values of every bond. Those that are only
    rounding are dropped, and the bond shrinks. Computed in double precision. Where the first and
    last core cannot hold the root of the norm, all cores share the scale.
    """
    moving = working(cores)
    last = len(moving) - 1
    if center == last:
        exponent = scaled_cores.exponent(moving[last])
        moving[last] = scaled_cores.times(moving[last], -exponent)
    else:
        moving, exponent = orthogonalized(moving, last)
    moving[last] = scaled_cores.times(moving[last], exponent % 2)
    exponent -= exponent % 2
    xp = array_namespace(*moving)
    roots: list[Array] = []
    for k in range(last, 0, -1):
        bond, mode, right = moving[k].shape
        left, values, rows = lapack.svd(moving[k].reshape(bond, mode * right))
        kept = resolved(xp, values)
        moving[k] = rows[:kept].reshape(-1, mode, right)
        weighted = left[:, :kept] * values[None, :kept]
        moving[k - 1] = xp.tensordot(moving[k - 1], weighted, axes=1)
        roots.insert(0, xp.sqrt(values[:kept]))
    # roots[k] stands between cores k and k + 1; the first core already carries its bond's values.
    for k, root in enumerate(roots):
        moving[k] = moving[k] * _inverse(xp, root)
        moving[k + 1] = root[:, None, None] * moving[k + 1]
    outer = (0, last) if last else (0,)
    return given_back(scaled_cores.put_back(moving, exponent, cores[0].dtype, outer), cores)


def resolved(xp: Any, values: Array) -> int:
    """How many descending singular values are more than rounding; at least one."""
    floor = values[0] * resolution(values.dtype)
    return max(int(xp.count_nonzero(values > floor)), 1)


def _inverse(xp: Any, roots: Array) -> Array:
    """Reciprocals; zero stays zero, as for the zero array."""
    safe = xp.where(roots > 0, roots, xp.ones_like(roots))
    return xp.where(roots > 0, 1.0 / safe, xp.zeros_like(roots))
