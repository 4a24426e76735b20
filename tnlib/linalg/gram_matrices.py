"""Gram matrices in double precision and their leading eigenpairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from scipy.linalg import blas

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack

# Elements that are converted to double at a time.
_CONVERTED = 1 << 18
# Side up to which NumPy's BLAS serves; above it SciPy's, which works in place.
_SMALL = 512


def gram(matrix: Array) -> Array:
    """``matrix @ matrix^H`` in double precision, for a matrix that may be in single.

    Columns are converted a block at a time, so no double copy of the matrix is made. Only the
    lower triangle is sure to be filled, which is what eigensolvers read.
    """
    xp = array_namespace(matrix)
    wide = backend.double(xp, matrix.dtype)
    rows, columns = matrix.shape
    large = rows > _SMALL and isinstance(matrix, np.ndarray)
    if matrix.dtype == wide and not large:
        return matrix @ backend.adjoint(matrix)
    step = max(256, _CONVERTED // rows)
    total = xp.zeros((rows, rows), dtype=wide, device=matrix.device)
    total = np.asfortranarray(total) if large else total
    for start in range(0, columns, step):
        block = backend.astype(matrix[:, start : start + step], wide)
        if large:
            _accumulate(total, block)
        else:
            total += block @ backend.adjoint(block)
    return total


def _accumulate(total: np.ndarray[Any, Any], block: np.ndarray[Any, Any]) -> None:
    """Add ``block @ block^H`` to the lower triangle of a Fortran-ordered array, in place."""
    flipped = np.asfortranarray(backend.adjoint(block))
    if backend.is_complex(block.dtype):
        blas.zherk(1.0, flipped, beta=1.0, c=total, trans=2, lower=1, overwrite_c=1)
    else:
        blas.dsyrk(1.0, flipped, beta=1.0, c=total, trans=1, lower=1, overwrite_c=1)


def energies(matrix: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Squared singular values, descending, from the Gram matrix of the smaller side."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else backend.adjoint(matrix)
    values = backend.to_numpy(lapack.eigvalsh(gram(wide)))
    return np.asarray(np.maximum(values[::-1], 0.0))


def eigh_top(hermitian: Array, count: int) -> tuple[Array, Array]:
    """Largest `count` eigenpairs, largest first, of a Hermitian matrix."""
    xp = array_namespace(hermitian)
    values, vectors = lapack.eigh(hermitian, count)
    return xp.flip(values, axis=-1), xp.flip(vectors, axis=-1)
