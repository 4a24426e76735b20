"""Permuting the modes of a train, by swapping neighbouring cores.

Two neighbours are multiplied, their modes exchanged and the pair split again by a truncated SVD at
the center of a canonical gauge, so each swap loses exactly the energy it discards (Oseledets'
TT-Toolbox permutes so). Swaps project at different bonds, and what they lose need not be
orthogonal: the sum of the lost norms bounds the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG
from tnlib.linalg.basis import orthogonal_factors
from tnlib.linalg.preparation import binds, budget
from tnlib.trains import regrouping
from tnlib.trains.chain import Chain

C = TypeVar("C", bound="Chain[Any]")


@own_arithmetic()
@keywords_named
def tt_permute(
    tt: C,
    axes: Sequence[int],
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    rng: RNG = None,
) -> C:
    """Permute the axes of a tensor train, or the pairs of modes of a matrix product operator.

    Neighbouring cores are swapped until the order is right. Without `ranks` and `eps` nothing but
    rounding is left out, and ranks can grow with every swap: what is a short bond in one order can
    be a long one in another. What cancels to rounding becomes the zero train, as in
    :func:`tt_round`.

    Parameters
    ----------
    tt : TT or MPO
        Never modified.
    axes : sequence of int
        A permutation: axis k of the result is axis ``axes[k]`` of `tt`, as in
        :func:`numpy.transpose`. Negative ones count from the end.
    ranks : int or sequence of int, optional
        Largest bond ranks, of all the orders on the way too.
    eps : float, optional
        Relative Frobenius distance from the permuted `tt` that the result is guaranteed to meet.
        With `ranks` as well, the ranks win where both cannot be had.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.

    Returns
    -------
    TT or MPO
        Of the type of `tt`. ``error`` bounds the relative distance, and ``error_kind`` is
        "bound": it is the sum of what the swaps lost.

    Raises
    ------
    TypeError
        If `tt` is not a TT or MPO, or an argument has the wrong type.
    ValueError
        If `axes` is not a permutation, the cores hold nan or inf or are part of an autograd graph,
        ranks or eps are out of range, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import tt_svd
    >>> X = np.sin(np.arange(24.0)).reshape(2, 3, 4)
    >>> turned = tt_permute(tt_svd(X, eps=1e-12), (2, 0, 1), eps=1e-9)
    >>> turned.shape, turned.error_kind, np.allclose(turned.to_dense(), X.transpose(2, 0, 1))
    ((4, 2, 3), 'bound', True)
    """
    if not isinstance(tt, Chain):
        raise TypeError(f"tt_permute takes a TT or an MPO, got {type(tt).__name__}")
    order = len(tt.cores)
    wanted = permutation(axes, order)
    limits, tolerance = checks.ranks(ranks, order), checks.eps(eps)
    generator = backend.as_generator(rng)
    begin = regrouping.begun(tt._merged())
    share = budget(tolerance, order, begin.prepared)
    swaps = _swaps(wanted)
    cores, center = list(begin.cores), 0
    discarded: list[float] = []
    kernels: list[str] = []
    spent = 0.0
    for done, k in enumerate(swaps):
        center = _moved(cores, center, k)
        matrix, shape = _exchanged(cores[k], cores[k + 1])
        allowed = None
        if share is not None:
            left = max(share * math.sqrt(begin.total) - spent, 0.0)
            allowed = (left / (len(swaps) - done)) ** 2
        limit = limits[k] if limits else None
        found = regrouping.basis(backend.adjoint(matrix), limit, allowed, generator)
        cores[k] = backend.adjoint(found.rest).reshape(*shape[:2], -1)
        cores[k + 1] = backend.adjoint(found.vectors).reshape(-1, *shape[2:])
        center = k
        spent += math.sqrt(found.discarded)
        discarded.append(found.discarded)
        kernels.append(found.kernel)
    modes = regrouping.modes_of(tt)
    return regrouping.finished(
        tt,
        [modes[k] for k in wanted],
        begin,
        cores,
        center,
        discarded,
        tuple(kernels),
        lost=spent,
        kind="bound",
        eps=tolerance,
        binding=binds(limits, [core.shape[2] for core in cores]),
    )


def permutation(axes: Sequence[int], order: int) -> tuple[int, ...]:
    """`axes` as a permutation of `order` positions."""
    if not isinstance(axes, Iterable) or getattr(axes, "ndim", 1) == 0:
        raise TypeError(f"axes must be a sequence of ints, got {axes!r}")
    try:
        found = tuple(checks.index("every axis", axis, order) for axis in axes)
    except (ValueError, IndexError) as error:
        raise ValueError(f"axes={axes!r} is not a permutation: {error}") from None
    if sorted(found) != list(range(order)):
        raise ValueError(
            f"axes={tuple(axes)} is not a permutation of {order} axes: each must be there once"
        )
    return found


def _swaps(wanted: Sequence[int]) -> list[int]:
    """Left positions of the neighbours to swap, in order: each axis is brought to its place."""
    now = list(range(len(wanted)))
    swaps: list[int] = []
    for place, axis in enumerate(wanted):
        at = now.index(axis)
        swaps += range(at - 1, place - 1, -1)
        now.insert(place, now.pop(at))
    return swaps


def _moved(cores: list[Array], center: int, to: int) -> int:
    """Move the center right to core `to`; left of `to` + 1 it stands already where it serves."""
    for k in range(center, to):
        rank, mode, bond = cores[k].shape
        columns, factor = orthogonal_factors(cores[k].reshape(rank * mode, bond))
        cores[k] = columns.reshape(rank, mode, -1)
        product = factor @ cores[k + 1].reshape(bond, -1)
        cores[k + 1] = product.reshape(-1, *cores[k + 1].shape[1:])
    return max(center, to)


def _exchanged(left: Array, right: Array) -> tuple[Array, tuple[int, int, int, int]]:
    """Two cores as the matrix of the pair with exchanged modes, and its four axes."""
    rank, first, bond = left.shape
    _, second, last = right.shape
    pair = left.reshape(-1, bond) @ right.reshape(bond, -1)
    swapped = pair.reshape(rank, first, second, last).swapaxes(1, 2)
    return swapped.reshape(rank * second, first * last), (rank, second, first, last)
