"""Tucker decompositions: a core tensor times one factor matrix per mode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import ArrayT
from tnlib.linalg.preparation import Prepared
from tnlib.result import Format, Info


@dataclass(frozen=True, eq=False, repr=False)
class Tucker(Format, Generic[ArrayT]):
    """A core tensor and a factor matrix for each of its axes; unpacks as ``core, factors``.

    A partial decomposition has factors for some modes only, and leaves the others whole.

    Attributes
    ----------
    core : array, shape (r_1, ..., r_d)
        The core tensor.
    factors : tuple of arrays
        One for each of `modes`: that of mode k has shape (n_k, r_k).
    modes : tuple of int
        The modes that the factors belong to, ascending; may be left out where they are all. For
        the others n_k = r_k.
    error : float or None
        Relative Frobenius error against the decomposed array, over its observed entries where
        some were missing; None for one that was not made from an array.
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
    >>> from tnlib import tucker_hosvd
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> tucker = tucker_hosvd(np.sin(i + j + k), eps=1e-10)
    >>> tucker
    Tucker(shape=(8, 9, 10), ranks=(2, 2, 2), n_params=62, error=...)
    >>> core, factors = tucker
    >>> core.shape, tucker.to_dense().shape
    ((2, 2, 2), (8, 9, 10))
    """

    core: ArrayT
    factors: tuple[ArrayT, ...]
    modes: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "core", backend.base(self.core))
        factors, modes = array_checks.tucker(self.core, self.factors, self.modes)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "modes", modes)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.core, self.factors))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n_1, ..., n_d) of the dense array."""
        sizes = list(self.ranks)
        for mode, factor in zip(self.modes, self.factors, strict=True):
            sizes[mode] = int(factor.shape[0])
        return tuple(sizes)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Multilinear ranks (r_1, ..., r_d)."""
        return tuple(int(size) for size in self.core.shape)

    @property
    def n_params(self) -> int:
        """Number of values in core and factors."""
        factors = sum(int(math.prod(factor.shape)) for factor in self.factors)
        return int(math.prod(self.core.shape)) + factors

    @own_arithmetic()
    def to_dense(self) -> ArrayT:
        """The array that core and factors stand for, of shape ``shape``, in their dtype.

        Differentiable on torch. Half precision is contracted in float32.
        """
        wide = backend.working_dtype(backend.namespace(self.core), self.core.dtype)
        factors = {k: backend.astype(factor, wide) for k, factor in by_mode(self).items()}
        dense = multiplied(backend.astype(self.core, wide), factors)
        found: ArrayT = backend.astype(dense, self.core.dtype)
        return found


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


def by_mode(tucker: Tucker[Any]) -> dict[int, Array]:
    """The factors by mode."""
    return dict(zip(tucker.modes, tucker.factors, strict=True))


def rounded(
    core: Array, factors: Mapping[int, Array], prepared: Prepared, like: Array
) -> Tucker[Any]:
    """Computed arrays with the scale put back, in the library and dtype of the result."""
    core = backend.times_power_of_two(backend.owned(core), prepared.exponent)
    modes = tuple(sorted(factors))
    restored = tuple(backend.restored(factors[k], like, prepared.out) for k in modes)
    return Tucker(backend.restored(core, like, prepared.out), restored, modes=modes)


def relative_error(prepared: Prepared, result: Tucker[Any], order: Sequence[int]) -> float:
    """Residual of `result` against the data, whose axes are in the given order.

    All factors but the first or the last are applied, whichever leaves less.
    """
    core, factors = computed(prepared, result, order)
    data = prepared.data
    ends = [k for k in (0, data.ndim - 1) if k in factors]
    if not ends:
        return math.sqrt(backend.energy(data - multiplied(core, factors)) / prepared.energy)
    end = min(ends, key=lambda k: factors[k].shape[1] / factors[k].shape[0])
    factor = factors.pop(end)
    rest = multiplied(core, factors)
    if end:
        left, right = rest.reshape(-1, factor.shape[1]), factor.mT
    else:
        left, right = factor, rest.reshape(factor.shape[1], -1)
    rows = data.reshape(left.shape[0], -1)
    return math.sqrt(backend.residual_energy(rows, left, right) / prepared.energy)


def computed(
    prepared: Prepared, result: Tucker[Any], order: Sequence[int]
) -> tuple[Array, dict[int, Array]]:
    """Core and factors of `result` as the data are: their dtype, scale and order of modes."""
    xp = array_namespace(prepared.data)
    core = backend.computable(result.core, prepared.data)
    if prepared.exponent:
        core = backend.times_power_of_two(backend.owned(core), -prepared.exponent)
    place = {axis: k for k, axis in enumerate(order)}
    factors = {
        place[axis]: backend.computable(factor, prepared.data)
        for axis, factor in by_mode(result).items()
    }
    return xp.permute_dims(core, tuple(order)), factors


def zero_tucker(
    array: Array,
    prepared: Prepared,
    eps: float | None,
    modes: Sequence[int],
    fixed: Mapping[int, Array] | None = None,
) -> Tucker[Any]:
    """The zero array: ranks 1, error 0, factors that are fixed or unit vectors."""
    xp = array_namespace(array)
    like = {"dtype": prepared.out, "device": array.device}
    factors: dict[int, Array] = {k: xp.eye(array.shape[k], 1, **like) for k in modes}
    for k, factor in (fixed or {}).items():
        factors[k] = backend.restored(factor, array, prepared.out)
    sizes = (factors[k].shape[1] if k in factors else size for k, size in enumerate(array.shape))
    core = xp.zeros(tuple(sizes), **like)
    count = len(modes)
    info = Info(("identity",) * count, (0.0,) * count, eps, prepared.compute_name)
    chosen = tuple(sorted(factors))
    found = tuple(factors[k] for k in chosen)
    return Tucker(core, found, modes=chosen, error=0.0, error_kind="exact", info=info)
