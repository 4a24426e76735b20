"""Matrix product operators: a matrix as a chain of four-way cores.

A matrix of shape (prod i_k, prod j_k) is read as a tensor of modes (i_1 j_1), (i_2 j_2), ... and
decomposed as a tensor train. With one core pair this is a truncated SVD; with more, the cores
share rows and columns between them, and what compresses well depends on the modes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import opt_einsum

from tnlib import _array, _checks, _sweep, gauge, shapes
from tnlib._array import RNG, Array
from tnlib._chain import Chain
from tnlib.contraction import plan_contraction


@dataclass(frozen=True, eq=False)
class MPO(Chain):
    """A matrix product operator (also called a TT matrix).

    Attributes
    ----------
    cores : tuple of arrays
        Core k has shape (r_k, i_k, j_k, r_{k+1}); the outer bonds are 1.
    error : float or None
        Relative Frobenius error of these cores against the decomposed matrix; None for an
        operator that was not made from one.
    center : int or None
        Position of the core that carries the norm where all cores to its left have orthonormal
        columns and all to its right orthonormal rows; None for any other gauge.
    info : Info or None
        How the operator was computed.

    Raises
    ------
    TypeError, ValueError
        If the cores are not a closed chain of four-way arrays of one library and dtype.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", _checks.cores(self.cores, 4, "(r, i, j, r)"))

    @property
    def row_dims(self) -> tuple[int, ...]:
        """Row modes (i_1, ..., i_d)."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def col_dims(self) -> tuple[int, ...]:
        """Column modes (j_1, ..., j_d)."""
        return tuple(int(core.shape[2]) for core in self.cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the matrix."""
        return math.prod(self.row_dims), math.prod(self.col_dims)

    def to_matrix(self) -> Array:
        """The dense matrix, of shape ``shape``, in the dtype of the cores.

        Differentiable with respect to torch cores. Half precision is contracted in float32.
        """
        xp = _array.namespace(*self.cores)
        flat = _sweep.dense([_merged(core) for core in self.cores])
        order = len(self.cores)
        pairs = [size for pair in zip(self.row_dims, self.col_dims, strict=True) for size in pair]
        axes = (*range(0, 2 * order, 2), *range(1, 2 * order, 2))
        return xp.permute_dims(flat.reshape(pairs), axes).reshape(self.shape)

    def to_dense(self) -> Array:
        """The dense matrix; the name that every format of the package has."""
        return self.to_matrix()

    def matvec(self, x: Array) -> Array:
        """Apply the matrix along the last axis: ``x @ matrix.T`` without forming the matrix.

        The cheapest order of contractions for the given number of vectors is searched; where it
        is cheaper, parts of the matrix, or all of it, are formed first.

        Parameters
        ----------
        x : array, shape (..., n)
            One vector or a batch, in the library and dtype of the cores.

        Returns
        -------
        array, shape (..., m)

        Raises
        ------
        TypeError
            If `x` is of another library or dtype.
        ValueError
            If the last axis of `x` is not n.
        """
        _array.namespace(x, *self.cores)
        rows, columns = self.shape
        if x.ndim == 0 or x.shape[-1] != columns:
            raise ValueError(
                f"x must have {columns} entries along its last axis, got shape {tuple(x.shape)}"
            )
        if x.dtype != self.cores[0].dtype:
            raise TypeError(
                f"x is {_array.dtype_name(x.dtype)} and the cores are "
                f"{_array.dtype_name(self.cores[0].dtype)}; cast one of them"
            )
        batch = x.reshape(-1, *self.col_dims)
        shapes_of = [tuple(core.shape) for core in self.cores]
        vectors = (max(batch.shape[0], 1), *self.col_dims)
        plan = plan_contraction(_matvec_equation(len(self.cores)), vectors, *shapes_of)
        return plan(batch, *self.cores).reshape(*x.shape[:-1], rows)

    def balanced(self) -> MPO:
        """The same matrix with the singular values of every bond shared evenly by both sides.

        Raises
        ------
        ValueError
            If the operator is not left-canonical (``center`` is not the last core).
        """
        cores = gauge.balance([_merged(core) for core in self.cores], self.center)
        dims = zip(self.row_dims, self.col_dims, strict=True)
        return MPO(_unmerged(cores, dims), error=self.error, info=self.info)


def mpo_decompose(
    W: Array,
    ranks: int | Sequence[int] | None = None,
    *,
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    eps: float | None = None,
    method: str = "auto",
    rng: RNG = None,
    dtype: Any = None,
) -> MPO:
    """Decompose a matrix of any shape into a matrix product operator.

    The matrix is reshaped to (i_1, ..., i_d, j_1, ..., j_d), interleaved to (i_1, j_1, i_2, ...)
    and split by sequential truncated SVDs. The result is left-canonical and at most sqrt(d - 1)
    times worse than the best operator of its ranks and modes (Oseledets, SIAM J. Sci. Comput. 33,
    2011, Theorem 2.2).

    Parameters
    ----------
    W : array, shape (m, n)
        NumPy array or dense torch tensor: floating point of any precision, complex, or integers
        (which are computed in the default floating type). Never modified; a torch parameter is
        read as data.
    ranks : int or sequence of int, optional
        Largest bond ranks: one for all, or d - 1 (d + 1 with ones at the ends is accepted).
    row_dims, col_dims : sequence of int, optional
        Row modes with product m and column modes with product n, equally many. Left out, they are
        factorised by :func:`factorize` into two, three (smaller side from 256) or four (from
        4096) modes; given for one side, the other gets as many.
    eps : float, optional
        Relative Frobenius error that the whole result is guaranteed to meet. With `ranks` as
        well, the ranks win where both cannot be had.
    method : {"auto", "svd", "gram", "krylov"}, optional
        Kernel of the truncated SVDs, see :mod:`tnlib.lowrank`.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.
    dtype : dtype or str, optional
        Floating type of the cores, by default that of `W`. Half precision is computed in
        float32 and rounded at the end.

    Returns
    -------
    MPO
        Cores in the library and on the device of `W`, with the exact relative error.

    Raises
    ------
    TypeError
        If `W` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `W` is not a non-empty matrix or holds nan or inf, the modes do not fit, ranks or eps
        are out of range, neither is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.kron(np.eye(4), np.arange(12.0).reshape(3, 4))
    >>> mpo = mpo_decompose(W, eps=1e-10, row_dims=(4, 3), col_dims=(4, 4))
    >>> mpo.shape, mpo.ranks, mpo.n_params
    ((12, 16), (1, 1, 1), 28)
    """
    matrix = _checks.tensor("W", W)
    if matrix.ndim != 2:
        raise ValueError(
            f"W must be a matrix, got shape {tuple(matrix.shape)}; "
            "for an array with other axes use tt_svd, or reshape it"
        )
    rows, columns = _modes(tuple(matrix.shape), row_dims, col_dims)
    order = len(rows)
    limits, tolerance = _checks.truncation(ranks, eps, order)
    swept = _sweep.sweep(
        matrix.reshape(rows + columns),
        axes=[axis for k in range(order) for axis in (k, order + k)],
        modes=[i * j for i, j in zip(rows, columns, strict=True)],
        ranks=limits,
        eps=tolerance,
        method=_checks.method(method),
        rng=rng,
        dtype=dtype,
    )
    cores = _unmerged(swept.cores, zip(rows, columns, strict=True))
    return MPO(cores, error=swept.error, center=order - 1, info=swept.info)


def _modes(
    shape: tuple[int, int], row_dims: Sequence[int] | None, col_dims: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column modes, checked, and factorised where they are not given."""
    rows = None if row_dims is None else _checks.dims("row_dims", row_dims, shape[0])
    columns = None if col_dims is None else _checks.dims("col_dims", col_dims, shape[1])
    order = len(rows or columns or ()) or shapes.default_order(min(shape))
    rows = rows or shapes.factorize(shape[0], order)
    columns = columns or shapes.factorize(shape[1], order)
    if len(rows) != len(columns):
        raise ValueError(
            f"row_dims and col_dims must be equally many, got {len(rows)} {rows} and "
            f"{len(columns)} {columns}; fill the shorter one with ones"
        )
    return rows, columns


def _merged(core: Array) -> Array:
    """A (r, i, j, r) core as (r, i * j, r)."""
    return core.reshape(core.shape[0], -1, core.shape[3])


def _unmerged(cores: Iterable[Array], dims: Iterable[tuple[int, int]]) -> tuple[Array, ...]:
    """(r, i * j, r) cores as (r, i, j, r)."""
    return tuple(
        core.reshape(core.shape[0], i, j, core.shape[2])
        for core, (i, j) in zip(cores, dims, strict=True)
    )


def _matvec_equation(order: int) -> str:
    """Einsum equation of a batch times a chain of `order` cores."""
    symbols = map(opt_einsum.get_symbol, itertools.count())
    batch, *bonds = itertools.islice(symbols, order + 2)
    rows = list(itertools.islice(symbols, order))
    columns = list(itertools.islice(symbols, order))
    cores = [bonds[k] + rows[k] + columns[k] + bonds[k + 1] for k in range(order)]
    vectors = batch + "".join(columns)
    return f"{vectors},{','.join(cores)}->{batch}{''.join(rows)}"
