"""Tensor trains: a d-way array as a chain of d three-way cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar, overload

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Indices, Method
from tnlib.trains import core_algebra, entry_products, index_arrays, sweep
from tnlib.trains.chain import Chain

_MOST_AXES = 64


@dataclass(frozen=True, eq=False, repr=False)
class TT(Chain[ArrayT]):
    """A tensor train.

    Attributes
    ----------
    cores : tuple of arrays
        Core k has shape (r_k, n_k, r_{k+1}); the outer bonds are 1.
    center : int or None
        Position of the core that carries the norm where all cores to its left have orthonormal
        columns and all to its right orthonormal rows; None for any other gauge.
    error : float or None
        Relative Frobenius error of these cores against what they were made from; None for a train
        that was not made from one.
    error_kind : {"exact", "inherited", "bound", "sampled", "none"}
        The measured residual of these cores, that of the cores they were made from by a change
        of gauge, a bound of it, an estimate from random entries, or nothing to measure.
    info : Info or None
        How the train was computed.

    Raises
    ------
    TypeError, ValueError
        If the cores are not a closed chain of three-way arrays of one library and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> train = tt_svd(np.arange(24.0).reshape(2, 3, 4), eps=1e-12)
    >>> train
    TT(shape=(2, 3, 4), ranks=(1, 2, 2, 1), n_params=24, error=...)
    >>> float(train[1, 2, 3].round(9)), train[:, 0, 1:].shape
    (23.0, (2, 3))
    """

    # Iterating would stop at no IndexError; the parts are in `cores`.
    __iter__: ClassVar[None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", array_checks.cores(self.cores, 3, "(r, n, r)"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes (n_1, ..., n_d)."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def _modes(self) -> tuple[int, ...]:
        return self.shape

    def _merged(self) -> list[Array]:
        return list(self.cores)

    def _rebuilt(self, cores: Sequence[Array], **about: Any) -> TT[ArrayT]:
        return TT(tuple(cores), **about)

    @own_arithmetic()
    def to_dense(self) -> ArrayT:
        """The array that the cores stand for, of shape ``shape``, in their dtype.

        Differentiable with respect to torch cores. Half precision is contracted in float32.

        Raises
        ------
        ValueError
            If there are more axes than NumPy's arrays can have.

        Examples
        --------
        >>> import numpy as np
        >>> X = np.arange(24.0).reshape(2, 3, 4)
        >>> np.allclose(tt_svd(X, eps=1e-12).to_dense(), X)
        True
        """
        if len(self.cores) > _MOST_AXES and not backend.is_torch(self.cores[0]):
            raise ValueError(
                f"NumPy's arrays have at most {_MOST_AXES} axes and this train {len(self.cores)}; "
                "index it, or take inner products"
            )
        dense: ArrayT = core_algebra.dense(self.cores).reshape(self.shape)
        return dense

    @overload
    def __getitem__(self, key: slice | EllipsisType) -> TT[ArrayT]: ...
    @overload
    def __getitem__(self, key: Any) -> Any: ...
    @own_arithmetic()
    def __getitem__(self, key: Any) -> Any:
        """An entry (an array without axes) or a smaller train, without forming the array.

        `key` is one integer or slice for each axis, or an ellipsis for several whole axes.
        Integers remove an axis. Half precision is contracted in float32.

        Raises
        ------
        TypeError
            If `key` holds anything else.
        IndexError
            If there are more indices than axes, or one is out of range.
        ValueError
            If a slice is empty.

        Examples
        --------
        >>> import numpy as np
        >>> train = tt_svd(np.arange(24.0).reshape(2, 3, 4), eps=1e-12)
        >>> round(float(train[1, 2, 3]), 6)
        23.0
        >>> train[0].shape, train[..., ::2].shape
        ((3, 4), (2, 3, 2))
        """
        selected = self._selection(key)
        if not any(isinstance(part, int) for part in selected):
            return TT(tuple(core[:, part] for core, part in zip(self.cores, selected, strict=True)))
        parts = [
            core[:, part : part + 1] if isinstance(part, int) else core[:, part]
            for core, part in zip(self.cores, selected, strict=True)
        ]
        kept = [not isinstance(part, int) for part in selected]
        if not any(kept):
            return core_algebra.entry(parts)
        return TT(tuple(core_algebra.without(parts, kept)))

    @own_arithmetic()
    def gather(self, indices: Indices) -> ArrayT:
        """Many entries at once, at given positions, without forming the array.

        O(r^2) operations an entry and core. Differentiable with respect to torch cores. An entry
        is found wherever it is itself in the range of the dtype, whatever the scales of the cores;
        half precision is computed in float32.

        Parameters
        ----------
        indices : integer array, shape (..., d), or tuple of d integer arrays
            Positions with the axes last, or one array for each axis; the arrays of a tuple are
            broadcast, as in NumPy's ``X[i, j, k]``. Of NumPy or torch; negative ones count from
            the end.

        Returns
        -------
        array, shape (...)
            In the library, dtype and device of the cores.

        Raises
        ------
        TypeError
            If `indices` are not integers.
        IndexError
            If one is out of range.
        ValueError
            If they are not one for each axis, or do not broadcast.

        Examples
        --------
        >>> import numpy as np
        >>> train = tt_svd(np.arange(24.0).reshape(2, 3, 4), eps=1e-12)
        >>> train.gather(np.array([[0, 0, 1], [1, 2, -1]])).round(9)
        array([ 1., 23.])
        >>> train.gather((1, np.arange(3)[:, None], np.arange(4))).shape
        (3, 4)
        """
        index, shape = index_arrays.per_axis(indices, self.shape, self.cores[0])
        found: ArrayT = entry_products.gathered(self.cores, index).reshape(shape)
        return found

    def _selection(self, key: Any) -> list[int | list[int]]:
        """What `key` takes from every axis: a position, or a list of them."""
        parts = list(key) if isinstance(key, tuple) else [key]
        gaps = [k for k, part in enumerate(parts) if part is Ellipsis]
        if len(gaps) > 1:
            raise IndexError("at most one ellipsis")
        if not gaps:
            parts.append(Ellipsis)
        gap = gaps[0] if gaps else len(parts) - 1
        order = len(self.cores)
        if len(parts) - 1 > order:
            raise IndexError(f"{len(parts) - 1} indices for a train of {order} axes")
        parts[gap : gap + 1] = [slice(None)] * (order - len(parts) + 1)
        selected: list[int | list[int]] = []
        for axis, (part, size) in enumerate(zip(parts, self.shape, strict=True)):
            if isinstance(part, slice):
                positions = list(range(*part.indices(size)))
                if not positions:
                    raise ValueError(f"the slice of axis {axis}, of size {size}, is empty")
                selected.append(positions)
            else:
                selected.append(checks.entry(f"the index of axis {axis}", part, size))
        return selected


@own_arithmetic()
@keywords_named
def tt_svd(
    X: ArrayT,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    method: Method = "auto",
    refine: int = 0,
    rng: RNG = None,
    dtype: DType | None = None,
) -> TT[ArrayT]:
    """Decompose an array into a tensor train by sequential truncated SVDs.

    The result is left-canonical and at most sqrt(d - 1) times worse than the best train of its
    ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, Theorem 2.2); 1.0025 sqrt(d - 1) times where
    ``info.kernels`` names the Krylov kernel, which stops when it gains next to nothing.

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
    max_params : int, optional
        Largest number of values of the result: the ranks are chosen by the singular values of the
        unfoldings so that little is lost (:func:`rank_profile`). With `ranks` as well, neither
        is exceeded; with `eps`, the budget wins where both cannot be had.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :doc:`/explanations/error`.
    refine : int, optional
        Sweeps of alternating least squares that follow, at the ranks found; each lowers the
        error or leaves it.
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
        If `X` is empty or holds nan or inf, ranks, eps or max_params are out of
        range, none is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k = np.ogrid[:8, :9, :10]
    >>> train = tt_svd(np.sin(i + j + k), eps=1e-10)
    >>> train.ranks, train.error < 1e-10
    ((1, 2, 2, 1), True)
    """
    array = array_checks.tensor("X", X)
    if array.ndim == 0:
        raise ValueError("X has no axes; a tensor train needs at least one")
    limits, tolerance = checks.truncation(ranks, eps, array.ndim, max_params)
    swept = sweep.sweep(
        array,
        axes=range(array.ndim),
        modes=tuple(array.shape),
        ranks=limits,
        eps=tolerance,
        max_params=max_params,
        method=checks.method(method),
        refine=checks.positive_int("refine", refine, least=0),
        rng=rng,
        dtype=dtype,
    )
    return TT(
        swept.cores,
        error=swept.error,
        error_kind="exact",
        center=array.ndim - 1,
        info=swept.info,
    )
