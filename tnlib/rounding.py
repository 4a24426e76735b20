"""Rounding: the same array, or nearly, with smaller bonds.

TT-rounding (Oseledets, SIAM J. Sci. Comput. 33, 2011, Algorithm 2): orthogonalise from the right,
then truncate from left to right. It is TT-SVD of the array that the train stands for, without
forming it, with the same bounds: the error lies between the largest tail of the unfoldings and the
root of their squared sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from tnlib import _array, _checks, _train, gauge
from tnlib._array import RNG, Array
from tnlib._basis import NOISE
from tnlib._chain import Chain
from tnlib._prepare import Prepared, binds, budget, verify, within
from tnlib._sweep import split_all, zero_train
from tnlib.choice.budget import bond_ranks, checked
from tnlib.choice.counts import ChainCount
from tnlib.info import Info

C = TypeVar("C", bound=Chain)

# Errors this many times above what rounding can do are the sum of the discarded energies.
_RESOLVED = 1e3


def tt_round(
    tt: C,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    method: str = "auto",
    rng: RNG = None,
) -> C:
    """Lower the ranks of a tensor train or a matrix product operator.

    The result is left-canonical and at most sqrt(d - 1) times further from `tt` than the closest
    one of its ranks. Rounding to given ranks a second time changes nothing but rounding errors; a
    tolerance is granted anew at every call, relative to what is given then.

    Parameters
    ----------
    tt : TT or MPO
        What to round; never modified.
    ranks : int or sequence of int, optional
        Largest bond ranks: one for all, or d - 1 (d + 1 with ones at the ends is accepted).
    eps : float, optional
        Relative Frobenius distance from `tt` that the whole result is guaranteed to meet. With
        `ranks` as well, the ranks win where both cannot be had.
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost. With `ranks` as well, neither
        is exceeded; with `eps`, the budget wins where both cannot be had.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncations, see :doc:`/explanations/error`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.

    Returns
    -------
    TT or MPO
        Of the type of `tt`; ``error`` is its exact relative distance from `tt`.

    Raises
    ------
    TypeError
        If `tt` is not a TT or MPO, or an argument has the wrong type.
    ValueError
        If the cores hold nan or inf or are part of an autograd graph, ranks or eps are out of
        range, neither is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np, tnlib
    >>> train = tnlib.tt_svd(np.sin(np.arange(120.0)).reshape(4, 5, 6), eps=1e-12)
    >>> (train + train).ranks, tt_round(train + train, eps=1e-12).ranks
    ((1, 4, 4, 1), (1, 2, 2, 1))
    """
    if not isinstance(tt, Chain):
        raise TypeError(f"tt_round takes a TT or an MPO, got {type(tt).__name__}")
    given = tt._merged()
    limits, tolerance = _checks.truncation(ranks, eps, len(given), max_params)
    kernel = _checks.method(method)
    allowed = checked(max_params, ChainCount(tuple(int(core.shape[1]) for core in given)))
    wide = gauge.working(given)
    cores = gauge.orthogonalized(wide, 0)
    exponent = _array.exponent(cores[0])
    cores[0] = _array.times_power_of_two(_array.owned(cores[0]), -exponent)
    total = _array.energy(cores[0])
    prepared = Prepared(cores[0], exponent, total, given[0].dtype)
    share = budget(tolerance, len(given), prepared)
    if total == 0.0:
        zeros = zero_train([core.shape[1] for core in given], given[0], given[0].dtype)
        info = Info((), (), tolerance, prepared.compute_name)
        return tt._rebuilt(zeros, error=0.0, error_kind="exact", center=len(given) - 1, info=info)
    modes = [core.shape[1] for core in given]
    if allowed is not None:
        limits = bond_ranks(cores, limits, allowed)
    bonds = limits or (None,) * (len(modes) - 1)
    generator = _array.as_generator(rng)

    def split(share: float | None) -> tuple[list[Array], list[float], tuple[str, ...]]:
        return split_all(cores[0], modes, bonds, share, total, kernel, generator, after=cores[1:])

    done, discarded, used = within(split, share, total)
    done[-1] = _array.times_power_of_two(_array.owned(done[-1]), exponent)
    rounded = gauge.given_back(done, given)
    error = math.sqrt(math.fsum(discarded) / total)
    roundoff = _array.unit_roundoff(prepared.out)
    if error < _RESOLVED * (roundoff + _uncertainty(wide, total, exponent)):
        error = math.ldexp(_distance(wide, rounded) / math.sqrt(total), -exponent)
    binding = binds(limits, [core.shape[-1] for core in rounded])
    verify(error, None if binding else tolerance, prepared.out, used)
    info = Info(used, tuple(d / total for d in discarded), tolerance, prepared.compute_name)
    return tt._rebuilt(rounded, error=error, error_kind="exact", center=len(given) - 1, info=info)


def _uncertainty(cores: Sequence[Array], total: float, exponent: int) -> float:
    """How far computing may move the train, relative to its norm.

    A roundoff of the train whose cores are replaced by their absolute values, which is large where
    terms cancel.
    """
    exponents = [_array.exponent(core) for core in cores]
    sizes = [abs(core) * 2.0**-e for core, e in zip(cores, exponents, strict=True)]
    size = math.sqrt(float(_train.inner(sizes, sizes)) / total)
    computed = NOISE * 2.0**-53 * size
    try:
        return math.ldexp(computed, sum(exponents) - exponent)
    except OverflowError:
        return math.inf


def _distance(wide: Sequence[Array], rounded: Sequence[Array]) -> float:
    """Frobenius distance of two trains, from their orthogonalised difference."""
    return gauge.norm(_train.add(wide, _train.scaled(gauge.working(rounded), -1.0, 0)))
