"""Tucker decompositions: a core tensor times one factor matrix a mode.

The *sequentially truncated* higher-order SVD (Vannieuwenhoven, Vandebril and Meerbergen, SIAM J.
Sci. Comput. 34, 2012) truncates one mode after the other, each time on what the modes before have
left. The discarded energies add up to the squared error, which is at most sqrt(d) times the least
possible at these ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from tnlib import _array, _checks, _operands, lowrank
from tnlib._array import RNG, Array
from tnlib._format import Format
from tnlib._prepare import Prepared, allowance, binds, budget, prepare, verify, within
from tnlib.choice.budget import checked, mode_ranks
from tnlib.choice.counts import TuckerCount
from tnlib.info import Info

# Modes up to which every order of truncation is costed.
_EXHAUSTIVE = 6


@dataclass(frozen=True, eq=False, repr=False)
class Tucker(Format):
    """A core tensor and one factor matrix for each of its axes; unpacks as ``core, factors``.

    Attributes
    ----------
    core : array, shape (r_1, ..., r_d)
        The core tensor.
    factors : tuple of arrays
        Factor k has shape (n_k, r_k).
    error : float or None
        Relative Frobenius error against the decomposed array; None for one that was not made
        from an array.
    error_kind : {"exact", "inherited", "none"}
        The measured residual, or nothing to measure.
    info : Info or None
        How the decomposition was computed.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not a core and matching matrices of one library and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> tucker = tucker_hosvd(np.sin(i + j + k), eps=1e-10)
    >>> tucker
    Tucker(shape=(8, 9, 10), ranks=(2, 2, 2), n_params=62, error=...)
    >>> core, factors = tucker
    >>> core.shape, tucker.to_dense().shape
    ((2, 2, 2), (8, 9, 10))
    """

    core: Array
    factors: tuple[Array, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "core", _array.base(self.core))
        object.__setattr__(self, "factors", _operands.tucker(self.core, self.factors))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.core, self.factors))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n_1, ..., n_d) of the dense array."""
        return tuple(int(factor.shape[0]) for factor in self.factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Multilinear ranks (r_1, ..., r_d)."""
        return tuple(int(size) for size in self.core.shape)

    @property
    def n_params(self) -> int:
        """Number of values in core and factors."""
        return sum(int(math.prod(array.shape)) for array in (self.core, *self.factors))

    def to_dense(self) -> Array:
        """The array that core and factors stand for, of shape ``shape``, in their dtype.

        Differentiable on torch. Half precision is contracted in float32.
        """
        xp = _array.namespace(self.core, *self.factors)
        wide = _array.working_dtype(xp, self.core.dtype)
        factors = {k: _array.astype(factor, wide) for k, factor in enumerate(self.factors)}
        dense = multiplied(_array.astype(self.core, wide), factors)
        return _array.astype(dense, self.core.dtype)


def tucker_hosvd(
    X: Array,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    method: str = "auto",
    rng: RNG = None,
    dtype: Any = None,
) -> Tucker:
    """Decompose an array by a sequentially truncated higher-order SVD.

    Modes are truncated in the order that costs least. The factors have orthonormal columns; the
    error is at most sqrt(d) times that of the best Tucker decomposition of these ranks.

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor: floating point of any precision, complex, or integers
        (which are computed in the default floating type). Never modified; a torch parameter is
        read as data.
    ranks : int or sequence of int, optional
        Largest multilinear ranks: one for all modes, or d.
    eps : float, optional
        Relative Frobenius error that the whole result is guaranteed to meet. With `ranks` as
        well, the ranks win where both cannot be had.
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost (:func:`rank_profile`). With `ranks` as well, neither
        is exceeded; with `eps`, the budget wins where both cannot be had.
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
        If `X` is empty or holds nan or inf, ranks, eps or max_params are out of
        range, none is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> core, factors = tucker_hosvd(np.sin(i + j + k), eps=1e-10)
    >>> core.shape, [factor.shape for factor in factors]
    ((2, 2, 2), [(8, 2), (9, 2), (10, 2)])
    """
    array = _operands.tensor("X", X)
    if array.ndim == 0:
        raise ValueError("X has no axes; a Tucker decomposition needs at least one")
    _checks.some_limit(ranks=ranks, eps=eps, max_params=max_params)
    limits = _checks.multilinear_ranks(ranks, array.ndim)
    tolerance = _checks.eps(eps)
    kernel = _checks.method(method)
    generator = _array.as_generator(rng)
    allowed = checked(max_params, TuckerCount(tuple(array.shape)))
    order = _mode_order(tuple(array.shape), limits)
    prepared = prepare(array, dtype, order)
    share = budget(tolerance, array.ndim + 1, prepared)
    if prepared.energy == 0.0:
        return zero_tucker(array, prepared, tolerance)
    in_order = None if limits is None else tuple(limits[axis] for axis in order)
    if allowed is not None:
        in_order = mode_ranks(prepared, in_order, allowed, generator)
    most = in_order or (None,) * len(order)

    def split(share: float | None) -> tuple[Array, list[Array], list[float], tuple[str, ...]]:
        return st_hosvd(prepared.data, most, share, prepared.energy, kernel, generator)

    core, factors, discarded, kernels = within(split, share, prepared.energy)
    back = tuple(order.index(axis) for axis in range(array.ndim))
    xp = array_namespace(core)
    result = rounded(xp.permute_dims(core, back), [factors[k] for k in back], prepared, array)
    error = relative_error(prepared, result, order)
    binding = binds(in_order, core.shape)
    verify(error, None if binding else tolerance, prepared.out, kernels)
    info = Info(
        kernels, tuple(d / prepared.energy for d in discarded), tolerance, prepared.compute_name
    )
    return Tucker(result.core, result.factors, error=error, error_kind="exact", info=info)


def st_hosvd(
    data: Array,
    limits: Sequence[int | None],
    share: float | None,
    total: float,
    method: str,
    generator: Any,
) -> tuple[Array, list[Array], list[float], tuple[str, ...]]:
    """Truncate the modes of `data` first to last: core, factors, discarded energies, kernels.

    Every projection puts the truncated mode last, so that the next one is first and its unfolding
    needs no copy.
    """
    rest = data
    factors: list[Array] = []
    discarded: list[float] = []
    kernels: list[str] = []
    for k, limit in enumerate(limits):
        shape = tuple(rest.shape)
        unfolding = rest.reshape(shape[0], -1)
        basis = lowrank.truncated_basis(
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


def multiplied(tensor: Array, matrices: Mapping[int, Array]) -> Array:
    """Multiply axes of `tensor` by matrices (new, old), the one that grows least first.

    Among equals an outer axis, whose unfolding needs no copy.
    """
    xp = array_namespace(tensor)
    axes = list(range(tensor.ndim))
    growth = {
        axis: (matrix.shape[0] / matrix.shape[1], min(axis, tensor.ndim - 1 - axis))
        for axis, matrix in matrices.items()
    }
    for axis in sorted(matrices, key=growth.__getitem__):
        tensor = xp.tensordot(tensor, matrices[axis], axes=((axes.index(axis),), (1,)))
        axes.append(axes.pop(axes.index(axis)))
    return xp.permute_dims(tensor, tuple(axes.index(axis) for axis in range(tensor.ndim)))


def rounded(core: Array, factors: Sequence[Array], prepared: Prepared, like: Array) -> Tucker:
    """Computed arrays with the scale put back, in the library and dtype of the result."""
    core = _array.times_power_of_two(_array.owned(core), prepared.exponent)
    out = [_array.restored(array, like, prepared.out) for array in (core, *factors)]
    return Tucker(out[0], tuple(out[1:]))


def relative_error(prepared: Prepared, result: Tucker, order: Sequence[int]) -> float:
    """Residual of `result` against the data, whose axes are in the given order."""
    xp = array_namespace(prepared.data)
    core, *factors = (
        _array.computable(array, prepared.data) for array in (result.core, *result.factors)
    )
    if prepared.exponent:
        core = _array.times_power_of_two(_array.owned(core), -prepared.exponent)
    core = xp.permute_dims(core, tuple(order))
    *first, last = (factors[axis] for axis in order)
    left = multiplied(core, dict(enumerate(first))).reshape(-1, last.shape[1])
    rows = prepared.data.reshape(-1, last.shape[0])
    return math.sqrt(_array.residual_energy(rows, left, last.mT) / prepared.energy)


def _mode_order(shape: tuple[int, ...], limits: tuple[int, ...] | None) -> tuple[int, ...]:
    """The order of truncations with the fewest operations.

    Without ranks, every mode is taken to be halved. Beyond six modes, the smallest goes first.
    """
    ranks = [size / 2 for size in shape] if limits is None else limits
    axes = tuple(range(len(shape)))
    if len(shape) > _EXHAUSTIVE:
        return tuple(sorted(axes, key=shape.__getitem__))

    def cost(order: tuple[int, ...]) -> float:
        size = float(math.prod(shape))
        total = 0.0 if order == axes else 10 * size
        for axis in order:
            rank = min(ranks[axis], shape[axis])
            total += (shape[axis] + 2 * rank) * size
            size *= rank / shape[axis]
        return total

    return min(itertools.permutations(axes), key=cost)


def zero_tucker(array: Array, prepared: Prepared, eps: float | None) -> Tucker:
    """The zero array: ranks 1, error 0, factors that are unit vectors."""
    xp = array_namespace(array)
    core = xp.zeros((1,) * array.ndim, dtype=prepared.out, device=array.device)
    factors = tuple(
        xp.eye(size, 1, dtype=prepared.out, device=array.device) for size in array.shape
    )
    modes = array.ndim
    info = Info(("identity",) * modes, (0.0,) * modes, eps, prepared.compute_name)
    return Tucker(core, factors, error=0.0, error_kind="exact", info=info)
