"""One sweep of truncated splits: the engine behind ``tt_svd`` and ``mpo_decompose``.

TT-SVD (Oseledets, SIAM J. Sci. Comput. 33, 2011): split off one mode at a time with an
orthonormal basis and pass on the projected rest. Because every rest is a projection, the squared
errors of the splits add up exactly, which gives max_k tau_k <= error <= sqrt(sum_k tau_k^2) for
the tails tau_k of the unfoldings, and lets a tolerance that one split leaves unused go to the
later ones. The error that is reported is not this sum but the residual of the cores as returned,
rounded to their dtype, measured against the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array, lowrank
from tnlib._array import RNG, Array
from tnlib._basis import NOISE


@dataclass(frozen=True)
class Info:
    """How a decomposition came to be.

    Attributes
    ----------
    kernels : tuple of str
        Kernel of every split, left to right: "identity", "qr", "svd", "gram" or "krylov".
    discarded : tuple of float
        Share of the input's energy that each split discarded; error^2 is their sum up to rounding.
    eps : float or None
        Tolerance that was asked for.
    compute_dtype : str
        Precision of the arithmetic.
    """

    kernels: tuple[str, ...]
    discarded: tuple[float, ...]
    eps: float | None
    compute_dtype: str


@dataclass(frozen=True)
class Swept:
    """Cores (r, n, r), left-orthonormal but for the last, with their true relative error."""

    cores: tuple[Array, ...]
    error: float
    info: Info


def sweep(
    array: Array,
    axes: Sequence[int],
    modes: Sequence[int],
    *,
    ranks: tuple[int, ...] | None,
    eps: float | None,
    method: str,
    rng: RNG,
    dtype: Any,
) -> Swept:
    """Decompose `array`, transposed by `axes` and read as a tensor of `modes`, into a train."""
    xp = array_namespace(array)
    generator = _array.as_generator(rng)
    out, compute = _dtypes(xp, array, dtype)
    budget = _budget(xp, eps, out, compute, len(modes))
    exponent = _exponent(array)
    if exponent is None:
        return _zero(xp, array, modes, out, compute, eps)
    data = _prepared(xp, array, axes, compute, exponent)
    total = _array.energy(data)
    limits = ranks or (None,) * (len(modes) - 1)
    cores, discarded, kernels = _split_all(data, modes, limits, budget, total, method, generator)
    cores[-1] = _array.times_power_of_two(_array.owned(cores[-1]), exponent)
    rounded = tuple(_array.restored(core, array, out) for core in cores)
    error = _residual(data, rounded, exponent, total)
    binding = any(limit == core.shape[-1] for limit, core in zip(limits, cores, strict=False))
    _verify(error, None if binding else eps, out, kernels)
    info = Info(kernels, tuple(d / total for d in discarded), eps, _array.dtype_name(compute))
    return Swept(rounded, error, info)


def _dtypes(xp: Any, array: Array, dtype: Any) -> tuple[Any, Any]:
    """The dtype of the cores to return and of the arithmetic."""
    given = array.dtype
    if xp.isdtype(given, ("bool", "integral")):
        given = _array.default_float(xp)
    out = given if dtype is None else _array.resolve_dtype(xp, dtype)
    if _array.is_complex(given) and not _array.is_complex(out):
        raise TypeError(f"complex data cannot be returned as {_array.dtype_name(out)} cores")
    wide = xp.result_type(_array.working_dtype(xp, given), _array.working_dtype(xp, out))
    return out, wide


def _budget(xp: Any, eps: float | None, out: Any, compute: Any, order: int) -> float | None:
    """The share of eps that truncation may use.

    Rounding the cores is independent of the truncation, so it takes its part in squares; the
    arithmetic's own errors can point the same way and are taken off in full.
    """
    if eps is None:
        return None
    rounding = math.sqrt(order) * _array.unit_roundoff(xp, out)
    arithmetic = math.sqrt(order) * NOISE * _array.unit_roundoff(xp, compute)
    floor = rounding + arithmetic
    if eps <= floor:
        raise ValueError(
            f"eps={eps:g} cannot be met: {order} cores in {_array.dtype_name(out)} computed in "
            f"{_array.dtype_name(compute)} are only accurate to about {floor:.1g}; "
            "ask for a larger eps or a wider dtype="
        )
    return max(math.sqrt(eps**2 - rounding**2) - arithmetic, 0.0)


def _exponent(array: Array) -> int | None:
    """Exponent of the power of two above the largest entry; None for the zero array.

    Divided by it, the squares of the entries neither overflow nor vanish.
    """
    largest = _array.magnitude(array)
    if not math.isfinite(largest):
        raise ValueError(
            "the array contains nan or inf; replace them before decomposing (a decomposition of "
            "such data has no meaning)"
        )
    return math.frexp(largest)[1] if largest > 0 else None


def _prepared(xp: Any, array: Array, axes: Sequence[int], compute: Any, exponent: int) -> Array:
    """A flat, scaled, transposed copy in the computing dtype; NumPy's where the data is in memory.

    On the CPU all arithmetic is NumPy's, whatever the library of the input: same memory, and
    one pool of threads.
    """
    moved = xp.permute_dims(array, tuple(axes))
    copied = xp.empty(tuple(moved.shape), dtype=compute, device=array.device)
    copied[...] = moved
    flat = _array.times_power_of_two(copied.reshape(-1), -exponent)
    return _array.to_numpy(flat) if _array.on_cpu(flat) else flat


def _split_all(
    data: Array,
    modes: Sequence[int],
    limits: Sequence[int | None],
    budget: float | None,
    total: float,
    method: str,
    generator: Any,
) -> tuple[list[Array], list[float], tuple[str, ...]]:
    cores: list[Array] = []
    discarded: list[float] = []
    kernels: list[str] = []
    rest, rank = data, 1
    for k, mode in enumerate(modes[:-1]):
        left = total - math.fsum(discarded)
        allowed = None
        if budget is not None:
            unspent = budget**2 * total - math.fsum(discarded)
            allowed = max(unspent, 0.0) / (len(modes) - 1 - k)
        basis = lowrank.truncated_basis(
            rest.reshape(rank * mode, -1),
            energy=left,
            max_rank=limits[k],
            allowed=allowed,
            method=method,
            rng=generator,
        )
        cores.append(basis.vectors.reshape(rank, mode, -1))
        rest, rank = basis.rest, basis.vectors.shape[1]
        discarded.append(basis.discarded)
        kernels.append(basis.kernel)
    cores.append(rest.reshape(rank, modes[-1], 1))
    return cores, discarded, tuple(kernels)


def _zero(xp: Any, array: Array, modes: Sequence[int], out: Any, compute: Any, eps: Any) -> Swept:
    """The zero tensor: rank 1, error 0, orthonormal but for the last core."""
    cores = []
    for k, mode in enumerate(modes):
        core = xp.zeros((1, mode, 1), dtype=out, device=array.device)
        if k < len(modes) - 1:
            core[0, 0, 0] = 1
        cores.append(core)
    splits = len(modes) - 1
    info = Info(("identity",) * splits, (0.0,) * splits, eps, _array.dtype_name(compute))
    return Swept(tuple(cores), 0.0, info)


def dense(cores: Sequence[Array]) -> Array:
    """The flat array that (r, n, r) cores stand for, in their dtype."""
    xp = array_namespace(*cores)
    out = cores[0].dtype
    wide = [_array.astype(core, _array.working_dtype(xp, out)) for core in cores]
    left, right = halves(wide)
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
    return _chain(cores[:bond]).reshape(-1, rank), _chain(cores[bond:]).reshape(rank, -1)


def _chain(cores: Sequence[Array]) -> Array:
    """Contract (r, n, r) cores over their bonds to one (r, n_1 ... n_d, r) array."""
    product = cores[0]
    for core in cores[1:]:
        rows, bond = product.shape[0], core.shape[0]
        merged = product.reshape(-1, bond) @ core.reshape(bond, -1)
        product = merged.reshape(rows, -1, core.shape[2])
    return product


def _residual(data: Array, cores: Sequence[Array], exponent: int, total: float) -> float:
    """Relative error of the rounded cores, from the residual formed a block of rows at a time."""
    wide = [_array.computable(core, data) for core in cores]
    wide[-1] = _array.times_power_of_two(_array.owned(wide[-1]), -exponent)
    left, right = halves(wide)
    rows = data.reshape(left.shape[0], -1)
    squared = _array.residual_energy(rows, left, right)
    return math.sqrt(squared / total)


def _verify(error: float, eps: float | None, out: Any, kernels: tuple[str, ...]) -> None:
    """Refuse a result that is not what was promised."""
    name = _array.dtype_name(out)
    if not math.isfinite(error):
        raise ValueError(f"the cores overflow {name}: scale the array down, or pass a wider dtype=")
    if eps is not None and error > eps:
        raise ValueError(
            f"eps={eps:g} was not met: the {name} cores found by {', '.join(kernels)} have error "
            f"{error:.3g}; ask for a larger eps, a wider dtype= or method='svd'"
        )
