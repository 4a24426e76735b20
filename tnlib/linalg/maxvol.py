"""Rows of a tall matrix whose square submatrix has nearly the largest volume.

Begin with the rows that a QR factorisation with pivoting of the transpose chooses, and exchange one
for another while that raises the determinant (Goreinov, Oseledets, Savostyanov, Tyrtyshnikov,
Zamarashkin, "How to find a good submatrix", 2010).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from tnlib.linalg import lapack

Matrix = np.ndarray[Any, np.dtype[Any]]

# Rows are exchanged while the determinant grows by more than this factor, and at most so often.
_GAIN = 1.05
_EXCHANGES = 200


def maxvol(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Positions of r rows of an (m, r) matrix, and the matrix times the inverse of these rows.

    The entries of the second are at most about 1, and its chosen rows are the identity.
    """
    rank = matrix.shape[1]
    rows = scipy.linalg.qr(matrix.conj().T, mode="r", pivoting=True)[1][:rank]
    found = _interpolation(matrix, rows)
    for _ in range(_EXCHANGES):
        row, column = divmod(int(np.argmax(np.abs(found))), rank)
        if abs(found[row, column]) <= _GAIN:
            break
        rows[column] = row
        change = found[row].copy()
        change[column] -= 1.0
        found = found - np.outer(found[:, column], change / found[row, column])
    return rows, _interpolation(matrix, rows)


def _interpolation(matrix: Matrix, rows: Matrix) -> Matrix:
    solved: Matrix = lapack.solve(matrix[rows].T, matrix.T).T
    return solved
