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
from functools import lru_cache
from typing import Any, overload

import opt_einsum

from tnlib import mode_sizes
from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common import formatting
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, ArrayT, DType, Indices, Method
from tnlib.contraction import Plan, plan_contraction
from tnlib.trains import (
    core_algebra,
    entry_products,
    index_arrays,
    operator_trace,
    scaled_cores,
    sweep,
)
from tnlib.trains.chain import Chain
from tnlib.trains.tt import TT

# Largest number of entries along one axis of an array.
_MOST_ENTRIES = 2**63 - 1


@dataclass(frozen=True, eq=False, repr=False)
class MPO(Chain[ArrayT]):
    """A matrix product operator (also called a TT matrix).

    Attributes
    ----------
    cores : tuple of arrays
        Core k has shape (r_k, i_k, j_k, r_{k+1}); the outer bonds are 1.
    center : int or None
        Position of the core that carries the norm where all cores to its left have orthonormal
        columns and all to its right orthonormal rows; None for any other gauge.
    error : float or None
        Relative Frobenius error of these cores against what they were made from; None for an
        operator that was not made from one.
    error_kind : {"exact", "inherited", "bound", "sampled", "none"}
        The measured residual of these cores, that of the cores they were made from by a change
        of gauge, a bound of it, an estimate from random entries, or nothing to measure.
    info : Info or None
        How the operator was computed.

    Raises
    ------
    TypeError, ValueError
        If the cores are not a closed chain of four-way arrays of one library and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((64, 96))
    >>> mpo = mpo_decompose(W, ranks=8)
    >>> mpo
    MPO(shape=(64, 96), row_dims=(8, 8), col_dims=(8, 12), ranks=(1, 8, 1), n_params=1280, ...)
    >>> (mpo @ mpo.T).shape, (mpo @ mpo.T).ranks
    ((64, 64), (1, 64, 1))
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", array_checks.cores(self.cores, 4, "(r, i, j, r)"))

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

    @own_arithmetic()
    def to_matrix(self) -> ArrayT:
        """The dense matrix, of shape ``shape``, in the dtype of the cores.

        Differentiable with respect to torch cores. Half precision is contracted in float32.

        Examples
        --------
        >>> import numpy as np
        >>> W = np.arange(24.0).reshape(4, 6)
        >>> np.allclose(mpo_decompose(W, eps=1e-9).to_matrix(), W)
        True
        """
        xp = backend.namespace(*self.cores)
        flat = core_algebra.dense(self._merged())
        pairs = zip(self.row_dims, self.col_dims, strict=True)
        # Modes of 1 are left out, since libraries allow few axes.
        axes = [(side, size) for pair in pairs for side, size in enumerate(pair) if size > 1]
        order = sorted(range(len(axes)), key=lambda k: axes[k][0])
        apart = flat.reshape([size for _, size in axes])
        matrix: ArrayT = xp.permute_dims(apart, tuple(order)).reshape(self.shape)
        return matrix

    def to_dense(self) -> ArrayT:
        """The dense matrix; the name that every format of the package has."""
        return self.to_matrix()

    @own_arithmetic()
    def matvec(self, x: ArrayT) -> ArrayT:
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

        Examples
        --------
        >>> import numpy as np
        >>> mpo, x = mpo_decompose(np.eye(64), ranks=1), np.ones((10, 64))
        >>> np.allclose(mpo.matvec(x), x)
        True
        """
        xp = backend.namespace(x, *self.cores)
        x = backend.base(x)
        rows, columns = self.shape
        if columns > _MOST_ENTRIES or rows > _MOST_ENTRIES:
            raise ValueError(
                f"the matrix has shape {formatting.sizes(self.shape)}, and no memory holds such a "
                "vector; take it as a TT and apply the operator with @"
            )
        if x.ndim == 0 or x.shape[-1] != columns:
            raise ValueError(
                f"x must have {columns} entries along its last axis, got shape {tuple(x.shape)}"
            )
        if x.dtype != self.cores[0].dtype:
            raise TypeError(
                f"x is {backend.dtype_name(x.dtype)} and the cores are "
                f"{backend.dtype_name(self.cores[0].dtype)}; cast one of them"
            )
        wide = backend.astype(x, backend.working_dtype(xp, x.dtype)).reshape(-1, columns)
        product = _applied(core_algebra.widened(self._merged()), self._pairs, wide).reshape(
            *x.shape[:-1], rows
        )
        found: ArrayT = backend.narrowed(product, x.dtype)
        return found

    @overload
    def __matmul__(self, other: MPO[ArrayT]) -> MPO[ArrayT]: ...
    @overload
    def __matmul__(self, other: TT[ArrayT]) -> TT[ArrayT]: ...
    @own_arithmetic()
    def __matmul__(self, other: MPO[ArrayT] | TT[ArrayT]) -> MPO[ArrayT] | TT[ArrayT]:
        """Product with an operator (an MPO) or a train (a TT); ranks multiply."""
        if not isinstance(other, MPO | TT):
            raise TypeError(
                f"@ takes an MPO or a TT, got {type(other).__name__}; for arrays use matvec"
            )
        rows = other.row_dims if isinstance(other, MPO) else other.shape
        if self.col_dims != rows:
            raise ValueError(
                f"the column modes {formatting.sizes(self.col_dims)} meet the modes "
                f"{formatting.sizes(rows)}; decompose both with the same modes"
            )
        xp = backend.namespace(*self.cores, *other.cores)
        ours, theirs = self._merged(), other._merged()
        dtype = xp.result_type(ours[0], theirs[0])

        def product(k: int, a: Array, b: Array) -> Array:
            between = tuple(other.cores[k].shape)[1:-1]
            first = a.reshape(a.shape[0], *self._pairs[k], a.shape[2])
            return _merged(_product(xp, first, b.reshape(b.shape[0], *between, b.shape[2])))

        cores = core_algebra.multiplied(
            product,
            [backend.astype(core, dtype) for core in ours],
            [backend.astype(core, dtype) for core in theirs],
        )
        if isinstance(other, TT):
            return TT(tuple(cores))
        return MPO(unmerged(cores, zip(self.row_dims, other.col_dims, strict=True)))

    @property
    def T(self) -> MPO[ArrayT]:
        """The transposed matrix."""
        xp = backend.namespace(*self.cores)
        cores = tuple(xp.permute_dims(core, (0, 2, 1, 3)) for core in self.cores)
        return MPO(
            cores, error=self.error, error_kind=self.error_kind, center=self.center, info=self.info
        )

    @own_arithmetic()
    def entry(self, i: int, j: int) -> ArrayT:
        """Entry (i, j) as an array without axes, without forming the matrix.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = mpo_decompose(np.arange(24.0).reshape(4, 6), eps=1e-9)
        >>> round(float(mpo.entry(1, 2)), 6)
        8.0
        """
        row, column = self.shape
        places = zip(
            _digits(checks.entry("i", i, row), self.row_dims),
            _digits(checks.entry("j", j, column), self.col_dims),
            strict=True,
        )
        cores = zip(self.cores, places, strict=True)
        found: ArrayT = core_algebra.entry([core[:, k, m : m + 1] for core, (k, m) in cores])
        return found

    @classmethod
    def from_tt(
        cls, train: TT[ArrayT], row_dims: Sequence[int], col_dims: Sequence[int]
    ) -> MPO[ArrayT]:
        """The operator that a train over paired modes is: its mode k is (i_k, j_k), i_k first.

        No arithmetic: cores are reshaped, and the error stays what it is. A train over modes
        (i_1, j_1, i_2, ...) becomes one over pairs by :func:`tt_reshape`.

        Raises
        ------
        TypeError
            If `train` is not a TT, or the modes are not integers.
        ValueError
            If a mode of the train is not the product of its row and column modes.

        Examples
        --------
        >>> from tnlib import tt_random
        >>> MPO.from_tt(tt_random((6, 20), 2), (2, 4), (3, 5)).shape
        (8, 15)
        """
        if not isinstance(train, TT):
            raise TypeError(f"from_tt takes a TT, got {type(train).__name__}")
        rows, columns = checks.sizes("row_dims", row_dims), checks.sizes("col_dims", col_dims)
        checks.pairs(rows, columns)
        if mode_sizes.paired_modes(rows, columns) != train.shape:
            raise ValueError(
                f"the train has modes {train.shape}, and row_dims={rows} times col_dims={columns} "
                f"are {mode_sizes.paired_modes(rows, columns)}"
            )
        cores = unmerged(train.cores, zip(rows, columns, strict=True))
        return MPO(
            cores,
            error=train.error,
            error_kind=train.error_kind,
            center=train.center,
            info=train.info,
        )

    def as_tt(self) -> TT[ArrayT]:
        """The train over the modes i_k j_k, row mode first; no arithmetic, and the same error.

        Examples
        --------
        >>> from tnlib import mpo_random
        >>> mpo_random((2, 4), (3, 5), 2).as_tt().shape
        (6, 20)
        """
        return TT(
            tuple(self._merged()),
            error=self.error,
            error_kind=self.error_kind,
            center=self.center,
            info=self.info,
        )

    @own_arithmetic()
    def gather(self, rows: Indices, columns: Indices) -> ArrayT:
        """Many entries at once, at given rows and columns, without forming the matrix.

        As :meth:`TT.gather`: O(r^2) operations an entry and core, differentiable, whatever the
        scales of the cores.

        Parameters
        ----------
        rows, columns : integer array, or tuple of d integer arrays
            Numbers of rows and of columns; for more rows than int64 counts, a tuple of their
            digits in the row modes. Broadcast against each other, as in NumPy's ``W[i, j]``.

        Returns
        -------
        array
            Of the shape of the broadcast arrays, in the library, dtype and device of the cores.

        Raises
        ------
        TypeError
            If `rows` or `columns` are not integers.
        IndexError
            If one is out of range.
        ValueError
            If they do not broadcast.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = mpo_decompose(np.arange(24.0).reshape(4, 6), eps=1e-9)
        >>> mpo.gather(np.array([0, 1, -1]), np.array([3, 2, 5])).round(6)
        array([ 3.,  8., 23.])
        """
        like = self.cores[0]
        i = index_arrays.digits("rows", rows, self.row_dims, self.shape[0], like)
        j = index_arrays.digits("columns", columns, self.col_dims, self.shape[1], like)
        index, shape = index_arrays.broadcast(i + j)
        merged = index_arrays.paired(index, self.col_dims)
        found: ArrayT = entry_products.gathered(self._merged(), merged).reshape(shape)
        return found

    @own_arithmetic()
    def trace(self) -> ArrayT:
        """Sum of the diagonal, without forming the matrix.

        Differentiable with respect to torch cores. The row modes must be the column modes.

        Returns
        -------
        array, shape ()
            In the dtype of the cores, in float32 for half precision.

        Raises
        ------
        ValueError
            If a row mode is not the column mode beside it.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = mpo_decompose(np.diag(np.arange(16.0)), eps=1e-9)
        >>> round(float(mpo.trace()), 6)
        120.0
        """
        found: ArrayT = operator_trace.trace(self.cores)
        return found

    @own_arithmetic()
    def partial_trace(self, positions: int | Sequence[int]) -> MPO[ArrayT]:
        """The operator on the other cores, with the modes of the given cores traced out.

        For a density matrix this is the reduced one. Differentiable; scales are spread evenly over
        the cores that are left.

        Parameters
        ----------
        positions : int or sequence of int
            Cores whose row and column modes are set equal and summed over; negative ones count
            from the end.

        Returns
        -------
        MPO
            Of the other cores.

        Raises
        ------
        TypeError
            If a position is not an integer.
        IndexError
            If there is no such core.
        ValueError
            If a position is given twice, or its row mode is not its column mode, or none is
            left.

        Examples
        --------
        >>> import numpy as np
        >>> a, b = np.diag([1.0, 2.0]), np.arange(9.0).reshape(3, 3)
        >>> mpo = mpo_decompose(np.kron(a, b), 1, row_dims=(2, 3), col_dims=(2, 3))
        >>> mpo.partial_trace(1).to_matrix().round(6)  # a times the trace of b
        array([[12.,  0.],
               [ 0., 24.]])
        """
        chosen = operator_trace.positions(positions, len(self.cores))
        if len(chosen) == len(self.cores):
            raise ValueError(
                f"positions={positions!r} are all {len(self.cores)} cores; for the whole trace use "
                "trace()"
            )
        return MPO(operator_trace.partial(self.cores, chosen))

    def row(self, i: int) -> TT[ArrayT]:
        """Row i as a tensor train over the column modes, without forming the matrix.

        ``mpo.row(i).to_dense().reshape(-1)`` is the row as a vector.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = mpo_decompose(np.arange(24.0).reshape(4, 6), eps=1e-9)
        >>> mpo.row(1).to_dense().reshape(-1).round(6)
        array([ 6.,  7.,  8.,  9., 10., 11.])
        """
        digits = _digits(checks.entry("i", i, self.shape[0]), self.row_dims)
        return TT(tuple(core[:, digit] for core, digit in zip(self.cores, digits, strict=True)))

    @own_arithmetic()
    def column(self, j: int) -> TT[ArrayT]:
        """Column j as a tensor train over the row modes, without forming the matrix.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = mpo_decompose(np.arange(24.0).reshape(4, 6), eps=1e-9)
        >>> mpo.column(2).to_dense().reshape(-1).round(6)
        array([ 2.,  8., 14., 20.])
        """
        return self.T.row(checks.entry("j", j, self.shape[1]))

    @property
    def _modes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.row_dims, self.col_dims

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        """Row and column mode of every core."""
        return list(zip(self.row_dims, self.col_dims, strict=True))

    def _modes_shown(self) -> str:
        rows, columns = formatting.sizes(self.row_dims), formatting.sizes(self.col_dims)
        return f"row_dims={rows}, col_dims={columns}, "

    def _merged(self) -> list[Array]:
        return [_merged(core) for core in self.cores]

    def _rebuilt(self, cores: Sequence[Array], **about: Any) -> MPO[ArrayT]:
        return MPO(unmerged(cores, self._pairs), **about)


@own_arithmetic()
@keywords_named
def mpo_decompose(
    W: ArrayT,
    ranks: int | Sequence[int] | None = None,
    *,
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    eps: float | None = None,
    max_params: int | None = None,
    method: Method = "auto",
    refine: int = 0,
    rng: RNG = None,
    dtype: DType | None = None,
) -> MPO[ArrayT]:
    """Decompose a matrix of any shape into a matrix product operator.

    The matrix is reshaped to (i_1, ..., i_d, j_1, ..., j_d), interleaved to (i_1, j_1, i_2, ...)
    and split by sequential truncated SVDs. The result is left-canonical and at most sqrt(d - 1)
    times worse than the best operator of its ranks and modes (Oseledets, SIAM J. Sci. Comput. 33,
    2011, Theorem 2.2); 1.0025 sqrt(d - 1) times where ``info.kernels`` names the Krylov kernel,
    which stops when it gains next to nothing.

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
        If `W` is not a non-empty matrix or holds nan or inf, the modes do not fit, ranks, eps or
        max_params are out of range, none is given, or eps is below what the dtype resolves.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.kron(np.eye(4), np.arange(12.0).reshape(3, 4))
    >>> mpo = mpo_decompose(W, eps=1e-10, row_dims=(4, 3), col_dims=(4, 4))
    >>> mpo.shape, mpo.ranks, mpo.n_params
    ((12, 16), (1, 1, 1), 28)
    """
    matrix = array_checks.tensor("W", W)
    if matrix.ndim != 2:
        raise ValueError(
            f"W must be a matrix, got shape {tuple(matrix.shape)}; "
            "for an array with other axes use tt_svd, or reshape it"
        )
    rows, columns = mode_sizes.matrix_modes(tuple(matrix.shape), row_dims, col_dims)
    order = len(rows)
    limits, tolerance = checks.truncation(ranks, eps, order, max_params)
    swept = sweep.sweep(
        matrix.reshape(rows + columns),
        axes=mode_sizes.paired_axes(order),
        modes=mode_sizes.paired_modes(rows, columns),
        ranks=limits,
        eps=tolerance,
        max_params=max_params,
        method=checks.method(method),
        refine=checks.positive_int("refine", refine, least=0),
        rng=rng,
        dtype=dtype,
    )
    return operator(swept, rows, columns)


def operator(swept: sweep.Swept, rows: Sequence[int], columns: Sequence[int]) -> MPO[Any]:
    """The operator of a finished sweep."""
    cores = unmerged(swept.cores, zip(rows, columns, strict=True))
    return MPO(cores, error=swept.error, error_kind="exact", center=len(cores) - 1, info=swept.info)


def _product(xp: Any, a: Array, b: Array) -> Array:
    """One core of a product: (r, i, k, s) with (p, k, ..., q) to (r p, i, ..., s q)."""
    product = xp.tensordot(a, b, axes=((2,), (1,)))
    outer = tuple(range(4, product.ndim - 1))
    moved = xp.permute_dims(product, (0, 3, 1, *outer, 2, product.ndim - 1))
    free = moved.shape[2:-2]
    return moved.reshape(a.shape[0] * b.shape[0], *free, a.shape[3] * b.shape[-1])


def _merged(core: Array) -> Array:
    """A (r, i, j, r) core as (r, i * j, r)."""
    return core.reshape(core.shape[0], -1, core.shape[-1])


def unmerged(cores: Iterable[Array], dims: Iterable[tuple[int, int]]) -> tuple[Array, ...]:
    """(r, i * j, r) cores as (r, i, j, r)."""
    return tuple(
        core.reshape(core.shape[0], i, j, core.shape[2])
        for core, (i, j) in zip(cores, dims, strict=True)
    )


def _digits(position: int, sizes: Sequence[int]) -> list[int]:
    """Indices of an entry in C order, for any number of modes."""
    digits = []
    for size in reversed(sizes):
        position, digit = divmod(position, size)
        digits.append(digit)
    return digits[::-1]


def _applied(cores: Sequence[Array], pairs: Sequence[tuple[int, int]], vectors: Array) -> Array:
    """Products (b, m) of (b, n) vectors with the operator of merged cores."""
    kept = [row * column > 1 for row, column in pairs]
    if any(kept) and not all(kept):
        cores = core_algebra.without(cores, kept)
        pairs = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
    # Modes of 1 are left out, since libraries allow few axes.
    narrow = [size for _, size in pairs if size > 1]
    batch = vectors.reshape(-1, *narrow)
    tamed, exponent = core_algebra.tamed(cores)
    split = [
        core.reshape([core.shape[0], *(size for size in pair if size > 1), core.shape[2]])
        for core, pair in zip(tamed, pairs, strict=True)
    ]
    shapes_of = [tuple(core.shape) for core in split]
    plan = _matvec_plan(tuple(pairs), tuple(shapes_of), max(batch.shape[0], 1))
    return scaled_cores.times(plan(batch, *split), exponent)


@lru_cache(maxsize=1024)
def _matvec_plan(
    pairs: tuple[tuple[int, int], ...], mode_sizes: tuple[tuple[int, ...], ...], count: int
) -> Plan:
    """The plan for so many vectors and cores of these modes and shapes."""
    narrow = [size for _, size in pairs if size > 1]
    return plan_contraction(_matvec_equation(pairs), (count, *narrow), *mode_sizes)


def _matvec_equation(pairs: Sequence[tuple[int, int]]) -> str:
    """Einsum equation of a batch times a chain of cores, without their modes of size 1."""
    order = len(pairs)
    symbols = map(opt_einsum.get_symbol, itertools.count())
    batch, *bonds = itertools.islice(symbols, order + 2)
    rows = [next(symbols) if row > 1 else "" for row, _ in pairs]
    columns = [next(symbols) if column > 1 else "" for _, column in pairs]
    cores = [bonds[k] + rows[k] + columns[k] + bonds[k + 1] for k in range(order)]
    vectors = batch + "".join(columns)
    return f"{vectors},{','.join(cores)}->{batch}{''.join(rows)}"
