"""Random tensor trains and operators of prescribed ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, AnyArray, ArrayT, DType, NumPyArray
from tnlib.mode_sizes import paired_modes
from tnlib.trains.mpo import MPO, unmerged
from tnlib.trains.tt import TT


@overload
def tt_random(
    shape: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = ...,
    dtype: DType | None = ...,
    like: None = ...,
) -> TT[NumPyArray]: ...
@overload
def tt_random(
    shape: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = ...,
    dtype: DType | None = ...,
    like: ArrayT,
) -> TT[ArrayT]: ...
@own_arithmetic()
@keywords_named
def tt_random(
    shape: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = None,
    dtype: DType | None = None,
    like: AnyArray | None = None,
) -> TT[Any]:
    """A random tensor train, whose entries have mean 0 and variance 1.

    Core entries are independent normal numbers with variance 1 / sqrt of the product of the two
    bonds.

    Parameters
    ----------
    shape : sequence of int
        Mode sizes (n_1, ..., n_d).
    ranks : int or sequence of int
        Bond ranks: one for all, or d - 1 (d + 1 with ones at the ends is accepted); lowered
        where a train of this shape cannot have them.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of the cores, by default that of `like`, or float64.
    like : array, optional
        NumPy array or torch tensor whose library and device the cores take; NumPy by default.

    Returns
    -------
    TT

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Examples
    --------
    >>> tt_random((4, 5, 6), 9).ranks
    (1, 4, 6, 1)
    """
    sizes = checks.sizes("shape", shape)
    limits = checks.required_ranks(ranks, len(sizes))
    return TT(_cores(sizes, limits, rng, dtype, np.empty(0) if like is None else like))


@overload
def mpo_random(
    row_dims: Sequence[int],
    col_dims: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = ...,
    dtype: DType | None = ...,
    like: None = ...,
) -> MPO[NumPyArray]: ...
@overload
def mpo_random(
    row_dims: Sequence[int],
    col_dims: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = ...,
    dtype: DType | None = ...,
    like: ArrayT,
) -> MPO[ArrayT]: ...
@own_arithmetic()
@keywords_named
def mpo_random(
    row_dims: Sequence[int],
    col_dims: Sequence[int],
    ranks: int | Sequence[int],
    *,
    rng: RNG = None,
    dtype: DType | None = None,
    like: AnyArray | None = None,
) -> MPO[Any]:
    """A random matrix product operator, whose entries have mean 0 and variance 1.

    Parameters
    ----------
    row_dims, col_dims : sequence of int
        Row and column modes, equally many.
    ranks, rng, dtype, like
        As in :func:`tt_random`.

    Returns
    -------
    MPO

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Examples
    --------
    >>> mpo_random((2, 3), (4, 5), 3).shape
    (6, 20)
    """
    rows, columns = checks.sizes("row_dims", row_dims), checks.sizes("col_dims", col_dims)
    checks.pairs(rows, columns)
    modes = paired_modes(rows, columns)
    limits = checks.required_ranks(ranks, len(rows))
    cores = _cores(modes, limits, rng, dtype, np.empty(0) if like is None else like)
    return MPO(unmerged(cores, zip(rows, columns, strict=True)))


def _cores(
    modes: Sequence[int], ranks: Sequence[int], rng: RNG, dtype: Any, like: Array
) -> tuple[Array, ...]:
    """Normal (r, n, r) cores whose product has entries of variance 1."""
    generator = backend.as_generator(rng)
    xp = backend.namespace(like)
    wanted = like.dtype if dtype is None else backend.resolve_dtype(xp, dtype)
    if not xp.isdtype(wanted, ("real floating", "complex floating")):
        wanted = backend.default_float(xp)
    sample = xp.empty(0, dtype=backend.double(xp, wanted), device=like.device)
    bonds = (1, *_attainable(modes, ranks), 1)
    made = []
    for mode, left, right in zip(modes, bonds[:-1], bonds[1:], strict=True):
        scale = (left * right) ** -0.25
        if backend.is_complex(wanted):
            scale *= 0.5**0.5
        values = backend.normal(generator, (left, mode, right), sample) * scale
        made.append(backend.astype(values, wanted))
    return tuple(made)


def _attainable(modes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Bond ranks lowered to what the modes on either side allow."""
    lowered = list(ranks)
    for k in range(len(lowered)):
        left = lowered[k - 1] if k else 1
        lowered[k] = min(lowered[k], left * modes[k])
    for k in range(len(lowered) - 1, -1, -1):
        right = lowered[k + 1] if k + 1 < len(lowered) else 1
        lowered[k] = min(lowered[k], right * modes[k + 1])
    return lowered
