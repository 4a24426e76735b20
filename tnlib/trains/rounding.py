"""Rounding: the same array, or nearly, with smaller bonds.

TT-rounding (Oseledets, SIAM J. Sci. Comput. 33, 2011, Algorithm 2): orthogonalise from the right,
then truncate from left to right. It is TT-SVD of the array that the train stands for, without
forming it, with the same bounds: the error lies between the largest tail of the unfoldings and the
root of their squared sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from array_api_compat import array_namespace

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, DType, Method
from tnlib.linalg.basis import resolution
from tnlib.linalg.preparation import Prepared, binds, budget, verify, within
from tnlib.ranks.budget import bond_ranks, checked
from tnlib.ranks.parameter_counts import ChainCount
from tnlib.result import Info
from tnlib.trains import core_algebra, gauge
from tnlib.trains.chain import Chain
from tnlib.trains.sweep import split_all, zero_train

C = TypeVar("C", bound="Chain[Any]")

CANCELS = "cancels to rounding"
# Errors this many times above what rounding can do are the sum of the discarded energies.
_RESOLVED = 1e3


@own_arithmetic()
@keywords_named
def tt_round(
    tt: C,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    method: Method = "auto",
    rng: RNG = None,
    dtype: DType | None = None,
) -> C:
    """Lower the ranks of a tensor train or a matrix product operator.

    The result is left-canonical and at most sqrt(d - 1) times further from `tt` than the closest
    one of its ranks; 1.0025 sqrt(d - 1) times where ``info.kernels`` names the Krylov kernel, which
    stops when it gains next to nothing. Rounding to given ranks a second time changes nothing but
    rounding errors; a tolerance is granted anew at every call, relative to what is given then.

    Where the last core cannot hold the norm, all cores share the scale and ``center`` is None.
    A train whose terms cancel to rounding, such as ``a - a``, becomes the zero train: ``error`` is
    1, since no digit is known of what it is relative to, and ``info.reason`` is "cancels to
    rounding".

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
    dtype : dtype or str, optional
        Floating type of the cores, by default that of `tt`. Computed in double precision.

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
        range, neither is given, eps is below what the dtype resolves, or the dtype cannot hold
        the cores.

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
    limits, tolerance = checks.truncation(ranks, eps, len(given), max_params)
    kernel = checks.method(method)
    allowed = checked(max_params, ChainCount(tuple(int(core.shape[1]) for core in given)))
    out = _out(given[0], dtype)
    wide = gauge.working(given)
    cores, exponent = gauge.orthogonalized(wide, 0)
    total = backend.energy(cores[0])
    prepared = Prepared(cores[0], exponent, total, out)
    share = budget(tolerance, len(given), prepared)
    modes = [int(core.shape[1]) for core in given]

    def zero(error: float, reason: str) -> C:
        zeros = zero_train(modes, given[0], out)
        info = Info((), (), tolerance, prepared.compute_name, reason=reason)
        return tt._rebuilt(zeros, error=error, error_kind="exact", center=len(given) - 1, info=info)

    unsure = uncertainty(wide, total, exponent)
    if unsure >= 1.0:
        return zero(1.0, CANCELS)
    if total == 0.0:
        return zero(0.0, "direct")
    if allowed is not None:
        limits = bond_ranks(cores, limits, allowed)
    bonds = limits or (None,) * (len(modes) - 1)
    generator = backend.as_generator(rng)

    def split(share: float | None) -> tuple[list[Array], list[float], tuple[str, ...]]:
        return split_all(cores[0], modes, bonds, share, total, kernel, generator, after=cores[1:])

    done, discarded, used = within(split, share, total)
    last = len(given) - 1
    rounded, center = gauge.placed(done, last, exponent, given, out)
    error = math.sqrt(math.fsum(discarded) / total)
    if error < _RESOLVED * (backend.unit_roundoff(out) + unsure):
        error = gauge.distance(wide, rounded, exponent) / math.sqrt(total)
    binding = binds(limits, [core.shape[-1] for core in rounded])
    if error > 1.0 and (binding or tolerance is None):
        return zero(1.0, CANCELS)
    verify(error, None if binding else tolerance, out, used)
    info = Info(used, tuple(d / total for d in discarded), tolerance, prepared.compute_name)
    return tt._rebuilt(rounded, error=error, error_kind="exact", center=center, info=info)


def _out(core: Array, dtype: Any) -> Any:
    """The dtype of the cores to return."""
    if dtype is None:
        return core.dtype
    out = backend.resolve_dtype(array_namespace(core), dtype)
    if backend.is_complex(core.dtype) and not backend.is_complex(out):
        raise TypeError(f"complex cores cannot be returned as {backend.dtype_name(out)}")
    return out


def uncertainty(cores: Sequence[Array], total: float, exponent: int) -> float:
    """How far computing may move the train, relative to its norm.

    A roundoff of the train whose cores are replaced by their absolute values, which is large where
    terms cancel; infinite where nothing is left of them.
    """
    sizes = [abs(core) for core in cores]
    squared, power = core_algebra.inner(sizes, sizes)
    if squared == 0 or total == 0.0:
        return math.inf if squared else 0.0
    size = math.log2(float(squared) / total) / 2 + int(power) / 2 - exponent
    return resolution("float64") * math.pow(2.0, min(size, 1000.0))
