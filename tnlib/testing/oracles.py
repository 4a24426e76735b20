"""Arrays with a known spectrum, the error of an approximation, and what bounds it from below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array

Values: TypeAlias = np.ndarray[Any, Any]


def with_spectrum(
    values: Sequence[float] | Values, rows: int, columns: int, seed: int = 0
) -> Values:
    """A matrix with given singular values between random orthonormal bases.

    Parameters
    ----------
    values : sequence of float
        The singular values, at most min(rows, columns) of them; the others are zero.
    rows, columns : int
        Shape of the matrix.
    seed : int, optional
        Seed of the bases.

    Returns
    -------
    numpy.ndarray, shape (rows, columns), float64

    Raises
    ------
    ValueError
        If there are too many values.

    Examples
    --------
    >>> matrix = with_spectrum([3.0, 2.0, 1.0], rows=5, columns=4)
    >>> abs(np.linalg.svd(matrix).S.round(12)).tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    rank = len(values)
    if rank > min(rows, columns):
        raise ValueError(f"a {rows} x {columns} matrix cannot have {rank} singular values")
    rng = np.random.default_rng(seed)
    left, right = orthogonal(rng, rows, rank), orthogonal(rng, columns, rank)
    matrix: Values = (left * np.asarray(values)) @ right.T
    return matrix


def relative_error(approximation: Array, array: Array) -> float:
    """Frobenius norm of the difference over that of `array`, computed in float64.

    Parameters
    ----------
    approximation, array : array
        NumPy arrays or torch tensors of one shape, of any precision.

    Returns
    -------
    float
        Against the zero array, the norm of `approximation`.

    Examples
    --------
    >>> relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    0.1
    """
    exact = _double(array)
    norm = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(_double(approximation) - exact))
    return difference / norm if norm else difference


def unfolding_tails(array: Array, ranks: Sequence[int]) -> list[float]:
    """What the best matrices of given ranks lose of the unfoldings of a train.

    No train of these ranks has an error below the largest of them, and TT-SVD's is at most the
    root of the sum of their squares.

    Parameters
    ----------
    array : array, shape (n_1, ..., n_d)
        NumPy array or torch tensor.
    ranks : sequence of int
        The d + 1 bond ranks of a train.

    Returns
    -------
    list of float
        For each of the d - 1 inner bonds, the relative error; 0 for the zero array.

    Examples
    --------
    >>> [round(tail, 9) for tail in unfolding_tails(np.diag([4.0, 3.0]), (1, 1, 1))]
    [0.6]
    """
    values = _double(array)
    left = [math.prod(values.shape[:k]) for k in range(1, values.ndim)]
    pairs = zip(left, ranks[1:-1], strict=True)
    return [_tail(values.reshape(size, -1), rank) for size, rank in pairs]


def mode_tails(array: Array, ranks: Sequence[int]) -> list[float]:
    """What the best matrices of given ranks lose of the unfoldings by one mode.

    No Tucker decomposition of these ranks has an error below the largest of them, and that of an
    HOSVD is at most the root of the sum of their squares.

    Parameters
    ----------
    array : array, shape (n_1, ..., n_d)
        NumPy array or torch tensor.
    ranks : sequence of int
        The d multilinear ranks.

    Returns
    -------
    list of float
        For each of the d modes, the relative error; 0 for the zero array.

    Examples
    --------
    >>> [round(tail, 9) for tail in mode_tails(np.diag([4.0, 3.0]), (1, 2))]
    [0.6, 0.0]
    """
    values = _double(array)
    unfoldings = [np.moveaxis(values, k, 0).reshape(n, -1) for k, n in enumerate(values.shape)]
    return [_tail(matrix, rank) for matrix, rank in zip(unfoldings, ranks, strict=True)]


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Values:
    """A random matrix with orthonormal columns, or square where it has more columns than rows."""
    return np.linalg.qr(rng.standard_normal((rows, columns))).Q


def _tail(matrix: Values, rank: int) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(values[rank:])) / norm if norm else 0.0


def _double(array: Array) -> Values:
    xp = backend.namespace(array)
    data = backend.detached(array)
    values: Values = backend.to_numpy(backend.astype(data, backend.double(xp, data.dtype)))
    return values
