"""The CP format: weights and one factor matrix for each mode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from tnlib.arrays import array_checks, backend
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import ArrayT
from tnlib.cp.mttkrp import conj, khatri_rao
from tnlib.result import Format


@dataclass(frozen=True, eq=False, repr=False)
class CP(Format, Generic[ArrayT]):
    """A sum of R rank-one terms; unpacks as ``weights, factors``.

    Entry (i_1, ..., i_d) is the sum over r of weights[r] times the product of factors[k][i_k, r].

    Attributes
    ----------
    weights : array, shape (R,)
        Weight of every term; real ones go with complex factors as well.
    factors : tuple of arrays
        Factor k has shape (n_k, R).
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
        If the arrays are not weights and matching matrices of one library and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> cp = CP(np.array([2.0, 1.0]), (np.ones((3, 2)), np.eye(4)[:, :2]))
    >>> cp
    CP(shape=(3, 4), ranks=(2,), n_params=16, error=None)
    >>> cp.to_dense()[0]
    array([2., 1., 0., 0.])
    """

    weights: ArrayT
    factors: tuple[ArrayT, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", backend.base(self.weights))
        object.__setattr__(self, "factors", array_checks.cp(self.weights, self.factors))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weights, self.factors))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n_1, ..., n_d) of the dense array."""
        return tuple(int(factor.shape[0]) for factor in self.factors)

    @property
    def rank(self) -> int:
        """Number of terms."""
        return int(self.weights.shape[0])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of terms, in a tuple, as every format has its ranks."""
        return (self.rank,)

    @property
    def n_params(self) -> int:
        """Number of values in weights and factors."""
        return self.rank + sum(int(math.prod(factor.shape)) for factor in self.factors)

    @own_arithmetic()
    def congruence(self) -> ArrayT:
        """Cosines between the terms, each taken as a tensor: the product of the modes' cosines.

        An entry near -1 says that two terms nearly cancel. With growing weights that is the mark
        of a degenerate decomposition, where no best one of this rank exists (Tucker's congruence
        coefficient; Kruskal, Harshman and Lundy 1989).

        Returns
        -------
        array, shape (R, R)
            Hermitian, in at least single precision; rows of terms that are zero are zero. Complex
            factors have complex cosines; the real part is near -1 where terms nearly cancel.

        Examples
        --------
        >>> import numpy as np
        >>> same, near = np.ones((5, 2)), np.array([[1.0, 1.0], [0.0, 0.1]])
        >>> CP(np.array([1.0, -1.0]), (same, near, near)).congruence().round(2)
        array([[ 1.  , -0.99],
               [-0.99,  1.  ]])
        """
        xp = backend.namespace(self.weights, *self.factors)
        wide = backend.working_dtype(xp, self.factors[0].dtype)
        weights = backend.astype(self.weights, wide)
        sizes = xp.abs(weights)
        signs = weights / xp.where(sizes > 0, sizes, xp.ones_like(sizes))
        product: ArrayT = conj(signs)[:, None] * signs[None, :]
        for factor in self.factors:
            columns = backend.astype(factor, wide)
            norms = xp.linalg.vector_norm(columns, axis=0)
            unit = columns / xp.where(norms > 0, norms, xp.ones_like(norms))
            product = product * (backend.adjoint(unit) @ unit)
        return product

    @own_arithmetic()
    def to_dense(self) -> ArrayT:
        """The array that the terms add up to, of shape ``shape``, in their dtype.

        Differentiable on torch. Half precision is contracted in float32.
        """
        dense: ArrayT = _dense(self.weights, self.factors).reshape(self.shape)
        return dense


def _dense(weights: Array, factors: Sequence[Array]) -> Array:
    """The sum of the terms as a matrix, the first half of the modes against the others."""
    xp = backend.namespace(weights, *factors)
    dtype = factors[0].dtype
    wide = backend.working_dtype(xp, dtype)
    rows = [backend.astype(factor, wide).mT for factor in factors]
    half = max(len(rows) // 2, 1)
    left = khatri_rao([backend.astype(weights, wide)[:, None], *rows[:half]])
    right = khatri_rao(rows[half:]) if rows[half:] else xp.ones_like(left[:, :1])
    return backend.astype(left.mT @ right, dtype)
