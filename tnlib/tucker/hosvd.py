"""``tucker_hosvd``: modes truncated one after the other.

The *sequentially truncated* higher-order SVD (Vannieuwenhoven, Vandebril and Meerbergen, SIAM J.
Sci. Comput. 34, 2012) truncates one mode after the other, each time on what the modes before have
left. The discarded energies add up to the squared error; with the best basis at every step, it is
at most sqrt(d) times the least possible at these ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Method
from tnlib.linalg import truncated_basis
from tnlib.linalg.preparation import allowance, binds, budget, prepare, verify, within
from tnlib.ranks.budget import checked, mode_ranks
from tnlib.ranks.parameter_counts import TuckerCount
from tnlib.result import Info
from tnlib.tucker.format import Tucker, relative_error, rounded, zero_tucker

# Modes up to which every order of truncation is costed.
_EXHAUSTIVE = 6


@own_arithmetic()
@keywords_named
def tucker_hosvd(
    X: ArrayT,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    modes: Sequence[int] | None = None,
    method: Method = "auto",
    rng: RNG = None,
    dtype: DType | None = None,
) -> Tucker[ArrayT]:
    """Decompose an array by a sequentially truncated higher-order SVD.

    Modes are truncated in the order that costs least. The factors have orthonormal columns; the
    error is at most sqrt(d) times that of the best Tucker decomposition of these ranks, where d
    modes are truncated; 1.0025 sqrt(d) times where ``info.kernels`` names the Krylov kernel, which
    stops when it gains next to nothing.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor: floating point of any precision, complex, or integers
        (which are computed in the default floating type). Never modified; a torch parameter is
        read as data.
    ranks : int or sequence of int, optional
        Largest multilinear ranks: one for all modes, or one for each that is decomposed.
    eps : float, optional
        Relative Frobenius error that the whole result is guaranteed to meet. With `ranks` as
        well, the ranks win where both cannot be had.
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost (:func:`rank_profile`). With `ranks` as well, neither
        is exceeded; with `eps`, the budget wins where both cannot be had. Not together with
        `modes`.
    modes : sequence of int, optional
        The modes to decompose; the others are left whole (partial Tucker, Tucker-2 for two of
        three) and have no factor. By default all.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :doc:`/explanations/error`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of core and factors, by default that of `X`.

    Returns
    -------
    Tucker
        In the library and on the device of `X`, with the exact relative error.

    Raises
    ------
    TypeError
        If `X` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `X` is empty or holds nan or inf, ranks, eps, max_params or modes are out of
        range, none of the first three is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> core, factors = tucker_hosvd(np.sin(i + j + k), eps=1e-10)
    >>> core.shape, [factor.shape for factor in factors]
    ((2, 2, 2), [(8, 2), (9, 2), (10, 2)])
    >>> partial = tucker_hosvd(np.sin(i + j + k), eps=1e-10, modes=(0, 2))
    >>> partial.core.shape, partial.modes, [factor.shape for factor in partial.factors]
    ((2, 9, 2), (0, 2), [(8, 2), (10, 2)])
    """
    array = array_checks.tensor("X", X)
    if array.ndim == 0:
        raise ValueError("X has no axes; a Tucker decomposition needs at least one")
    checks.some_limit(ranks=ranks, eps=eps, max_params=max_params)
    chosen = checks.modes(modes, array.ndim)
    limits = checks.multilinear_ranks(ranks, len(chosen))
    tolerance = checks.eps(eps)
    kernel = checks.method(method)
    generator = backend.as_generator(rng)
    allowed = whole_budget(max_params, tuple(array.shape), chosen)
    order, most = _mode_order(tuple(array.shape), chosen, limits)
    prepared = prepare(array, dtype, order)
    share = budget(tolerance, len(chosen) + 1, prepared)
    if prepared.energy == 0.0:
        return zero_tucker(array, prepared, tolerance, chosen)
    if allowed is not None:
        most = mode_ranks(prepared, most, allowed, generator)
    bounds = most or (None,) * len(chosen)

    def split(share: float | None) -> tuple[Array, list[Array], list[float], tuple[str, ...]]:
        return st_hosvd(prepared.data, bounds, share, prepared.energy, kernel, generator)

    core, found, discarded, kernels = within(split, share, prepared.energy)
    # The core has the whole modes first.
    moved = order[len(chosen) :] + order[: len(chosen)]
    core = array_namespace(core).permute_dims(core, _inverse(moved))
    result = rounded(core, dict(zip(order, found, strict=False)), prepared, array)
    error = relative_error(prepared, result, order)
    binding = binds(most, [factor.shape[1] for factor in found])
    verify(error, None if binding else tolerance, prepared.out, kernels)
    info = Info(
        kernels, tuple(d / prepared.energy for d in discarded), tolerance, prepared.compute_name
    )
    return replace(result, error=error, error_kind="exact", info=info)


def whole_budget(max_params: Any, shape: tuple[int, ...], modes: Sequence[int]) -> int | None:
    """The checked budget of a decomposition of all modes; refused for one of some modes."""
    if max_params is not None and tuple(modes) != tuple(range(len(shape))):
        raise ValueError(
            "max_params= chooses the ranks of all modes together; with modes= give ranks= or eps="
        )
    return checked(max_params, TuckerCount(shape))


def st_hosvd(
    data: Array,
    limits: Sequence[int | None],
    share: float | None,
    total: float,
    method: str,
    generator: Any,
) -> tuple[Array, list[Array], list[float], tuple[str, ...]]:
    """Truncate the first modes of `data`, one per limit: core, factors, energies lost, kernels.

    Every projection puts the truncated mode last, so that the next one is first and its unfolding
    needs no copy. Modes without a limit come first in the core.
    """
    rest = data
    factors: list[Array] = []
    discarded: list[float] = []
    kernels: list[str] = []
    for k, limit in enumerate(limits):
        shape = tuple(rest.shape)
        unfolding = rest.reshape(shape[0], -1)
        basis = truncated_basis.truncated_basis(
            unfolding,
            energy=max(total - math.fsum(discarded), 0.0),
            max_rank=limit,
            allowed=allowance(share, total, discarded, len(limits) - k),
            method=method,
            rng=generator,
        )
        factors.append(basis.vectors)
        discarded.append(basis.discarded)
        kernels.append(basis.kernel)
        rest = basis.rest.mT.reshape(*shape[1:], basis.vectors.shape[1])
    return rest, factors, discarded, tuple(kernels)


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def _mode_order(
    shape: tuple[int, ...], modes: tuple[int, ...], limits: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The order of truncations with the fewest operations, whole modes after them, and its limits.

    Without ranks, every mode is taken to be halved. Beyond six modes, the smallest goes first.
    """
    ranks = {axis: shape[axis] / 2 for axis in modes}
    if limits is not None:
        ranks = {axis: min(rank, shape[axis]) for axis, rank in zip(modes, limits, strict=True)}
    axes = tuple(range(len(shape)))
    whole = tuple(axis for axis in axes if axis not in modes)

    def cost(order: tuple[int, ...]) -> float:
        size = float(math.prod(shape))
        total = 0.0 if (*order, *whole) == axes else 10 * size
        for axis in order:
            total += (shape[axis] + 2 * ranks[axis]) * size
            size *= ranks[axis] / shape[axis]
        return total

    if len(modes) > _EXHAUSTIVE:
        order = tuple(sorted(modes, key=shape.__getitem__))
    else:
        order = min(itertools.permutations(sorted(modes)), key=cost)
    if limits is None:
        return (*order, *whole), None
    by_mode = dict(zip(modes, limits, strict=True))
    return (*order, *whole), tuple(by_mode[axis] for axis in order)
