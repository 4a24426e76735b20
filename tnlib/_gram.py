"""Gram matrices in double precision and their leading eigenpairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace
from scipy.linalg import blas

from tnlib import _array
from tnlib._array import Array

# Elements that are converted to double at a time.
_CONVERTED = 1 << 18
# Side up to which NumPy's BLAS and eigensolver serve; above it SciPy's, which work in place and
# can stop at a few eigenpairs.
_SMALL = 512


def gram(matrix: Array) -> Array:
    """``matrix @ matrix^H`` in double precision, for a matrix that may be in single.

    Columns are converted a block at a time, so no double copy of the matrix is made. Only the
    lower triangle is sure to be filled, which is what eigensolvers read.
    """
    xp = array_namespace(matrix)
    wide = _array.double(xp, matrix.dtype)
    rows, columns = matrix.shape
    large = rows > _SMALL and isinstance(matrix, np.ndarray)
    if matrix.dtype == wide and not large:
        return matrix @ _array.adjoint(matrix)
    step = max(256, _CONVERTED // rows)
    total = xp.zeros((rows, rows), dtype=wide, device=matrix.device)
    total = np.asfortranarray(total) if large else total
    for start in range(0, columns, step):
        block = _array.astype(matrix[:, start : start + step], wide)
        if large:
            _accumulate(total, block)
        else:
            total += block @ _array.adjoint(block)
    return total


def _accumulate(total: np.ndarray[Any, Any], block: np.ndarray[Any, Any]) -> None:
    """Add ``block @ block^H`` to the lower triangle of a Fortran-ordered array, in place."""
    flipped = np.asfortranarray(_array.adjoint(block))
    if _array.is_complex(block.dtype):
        blas.zherk(1.0, flipped, beta=1.0, c=total, trans=2, lower=1, overwrite_c=1)
    else:
        blas.dsyrk(1.0, flipped, beta=1.0, c=total, trans=1, lower=1, overwrite_c=1)


def eigh_top(hermitian: Array, count: int) -> tuple[Array, Array]:
    """Largest `count` eigenpairs, largest first, of a Hermitian matrix, which is overwritten."""
    if not _array.on_cpu(hermitian):
        values, vectors = array_namespace(hermitian).linalg.eigh(hermitian)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    matrix = _array.to_numpy(hermitian)
    size = matrix.shape[0]
    if size <= _SMALL:
        values, vectors = np.linalg.eigh(matrix)
    else:
        few = count <= size // 8
        values, vectors = scipy.linalg.eigh(
            np.asfortranarray(matrix),
            lower=True,
            overwrite_a=True,
            check_finite=False,
            driver="evr" if few else "evd",
            subset_by_index=(size - count, size - 1) if few else None,
        )
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    if isinstance(hermitian, np.ndarray):
        return values, vectors
    return _array.from_numpy(values.copy(), hermitian), _array.from_numpy(vectors.copy(), hermitian)
