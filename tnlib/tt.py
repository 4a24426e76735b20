"""Tensor trains: a d-way array as a chain of d three-way cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tnlib import _checks, _sweep, gauge
from tnlib._array import RNG, Array
from tnlib._chain import Chain


@dataclass(frozen=True, eq=False)
class TT(Chain):
    """A tensor train.

    Attributes
    ----------
    cores : tuple of arrays
        Core k has shape (r_k, n_k, r_{k+1}); the outer bonds are 1.
    error : float or None
        Relative Frobenius error of these cores against the decomposed array; None for a train
        that was not made from one.
    center : int or None
        Position of the core that carries the norm where all cores to its left have orthonormal
        columns and all to its right orthonormal rows; None for any other gauge.
    info : Info or None
        How the train was computed.

    Raises
    ------
    TypeError, ValueError
        If the cores are not a closed chain of three-way arrays of one library and dtype.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", _checks.cores(self.cores, 3, "(r, n, r)"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes (n_1, ..., n_d)."""
        return tuple(int(core.shape[1]) for core in self.cores)

    def to_dense(self) -> Array:
        """The array that the cores stand for, of shape ``shape``, in their dtype.

        Differentiable with respect to torch cores. Half precision is contracted in float32.
        """
        return _sweep.dense(self.cores).reshape(self.shape)

    def balanced(self) -> TT:
        """The same array with the singular values of every bond shared evenly by both sides.

        Raises
        ------
        ValueError
            If the train is not left-canonical (``center`` is not the last core).
        """
        return TT(gauge.balance(self.cores, self.center), error=self.error, info=self.info)


def tt_svd(
    X: Array,
    ranks: int | tuple[int, ...] | None = None,
    *,
    eps: float | None = None,
    method: str = "auto",
    rng: RNG = None,
    dtype: Any = None,
) -> TT:
    """Decompose an array into a tensor train by sequential truncated SVDs.

    The result is left-canonical and at most sqrt(d - 1) times worse than the best train of its
    ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, Theorem 2.2).

    Parameters
    ----------
    X : array, shape (n_1, ..., n_d)
        NumPy array or dense torch tensor: floating point of any precision, complex, or integers
        (which are computed in the default floating type). Never modified; a torch parameter is
        read as data.
    ranks : int or sequence of int, optional
        Largest bond ranks: one for all, or d - 1 (d + 1 with ones at the ends is accepted).
    eps : float, optional
        Relative Frobenius error that the whole result is guaranteed to meet. With `ranks` as
        well, the ranks win where both cannot be had.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :mod:`tnlib.lowrank`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of the cores, by default that of `X`. Half precision is computed in
        float32 and rounded at the end.

    Returns
    -------
    TT
        Cores in the library and on the device of `X`, with the exact relative error.

    Raises
    ------
    TypeError
        If `X` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `X` is empty or holds nan or inf, ranks or eps are out of range, neither is given, or
        eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> train = tt_svd(np.sin(i + j + k), eps=1e-10)
    >>> train.ranks, train.error < 1e-10
    ((1, 2, 2, 1), True)
    """
    array = _checks.tensor("X", X)
    if array.ndim == 0:
        raise ValueError("X has no axes; a tensor train needs at least one")
    limits, tolerance = _checks.truncation(ranks, eps, array.ndim)
    swept = _sweep.sweep(
        array,
        axes=range(array.ndim),
        modes=tuple(array.shape),
        ranks=limits,
        eps=tolerance,
        method=_checks.method(method),
        rng=rng,
        dtype=dtype,
    )
    return TT(swept.cores, error=swept.error, center=array.ndim - 1, info=swept.info)
