"""Factorisations made of rotations and reflections alone, for where LAPACK gives none.

One-sided Jacobi (Hestenes, J. SIAM 6, 1958) rotates pairs of columns until all are orthogonal:
then their norms are the singular values, and nothing is left that could fail to converge. A round
of disjoint pairs is one NumPy expression. Slow, accurate, and used where every driver failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

Matrix: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Sweeps after which pairs are orthogonal enough, whatever rounding still says; about ten are usual.
_SWEEPS = 40
# Squared norms, of columns of a matrix of norm 1, below which a column is zero.
_ZERO = 1e-280


def svd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """U, the descending singular values, and V^H, of min(m, n) columns and rows."""
    if matrix.shape[0] < matrix.shape[1]:
        left, values, right = svd(matrix.conj().T)
        return right.conj().T, values, left.conj().T
    size = float(np.abs(matrix).max(initial=0.0)) or 1.0
    columns, rotation = _orthogonalized(_double(matrix) / size)
    values = np.sqrt(_squares(columns))
    order = np.argsort(-values, kind="stable")
    columns, rotation, values = columns[:, order], rotation[:, order], values[order]
    there = values**2 > _ZERO
    units = np.where(there, columns / np.where(there, values, 1.0), 0.0)
    left = np.where(there, units, qr(units)[0])
    values = np.asarray(values * size, matrix.real.dtype)
    return _like(matrix, left), values, _like(matrix, rotation.conj().T)


def eigh(hermitian: Matrix) -> tuple[Matrix, Matrix]:
    """Ascending eigenvalues and eigenvectors of a matrix of which the lower triangle is read.

    They are singular values and vectors of the matrix plus a multiple of the identity that makes
    it positive.
    """
    lower = np.tril(_double(hermitian))
    full = lower + np.tril(lower, -1).conj().T
    shift = float(np.abs(full).sum(axis=1).max(initial=0.0))
    left, values, _ = svd(full + shift * np.eye(full.shape[0]))
    values = np.asarray(values[::-1] - shift, hermitian.real.dtype)
    return values, _like(hermitian, left[:, ::-1])


def qr(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Q with min(m, n) orthonormal columns and R upper triangular, by Householder reflections."""
    upper = _double(matrix).copy()
    rows, columns = upper.shape
    count = min(rows, columns)
    mirrors = []
    for k in range(count):
        mirror = upper[k:, k].copy()
        largest = float(np.abs(mirror).max())
        if largest > 0:
            mirror /= largest
            phase = mirror[0] / abs(mirror[0]) if mirror[0] != 0 else 1.0
            mirror[0] += phase * np.sqrt(np.vdot(mirror, mirror).real)
            mirror /= np.sqrt(np.vdot(mirror, mirror).real)
        mirrors.append(mirror)
        _reflect(upper[k:, k:], mirror)
    basis = np.eye(rows, count, dtype=upper.dtype)
    for k in reversed(range(count)):
        _reflect(basis[k:], mirrors[k])
    return _like(matrix, basis), _like(matrix, np.triu(upper[:count]))


def _reflect(block: Matrix, mirror: Matrix) -> None:
    block -= 2 * np.outer(mirror, mirror.conj() @ block)


def _orthogonalized(columns: Matrix) -> tuple[Matrix, Matrix]:
    """Orthogonal columns A V and the rotation V, for A (m, n) with m >= n."""
    count = columns.shape[1]
    rotation = np.eye(count, dtype=columns.dtype)
    enough = np.finfo(np.float64).eps * np.sqrt(columns.shape[0])
    for _ in range(_SWEEPS):
        rotated = False
        for first, second in _rounds(count):
            alpha, beta = _squares(columns[:, first]), _squares(columns[:, second])
            gamma = np.sum(columns[:, first].conj() * columns[:, second], axis=0)
            size = np.abs(gamma)
            active = (size > enough * np.sqrt(alpha * beta)) & (alpha * beta > _ZERO**2)
            if not active.any():
                continue
            rotated = True
            first, second, gamma, size = first[active], second[active], gamma[active], size[active]
            slope = (beta[active] - alpha[active]) / (2 * size)
            tangent = np.where(slope < 0, -1.0, 1.0) / (np.abs(slope) + np.hypot(1.0, slope))
            cosine = 1 / np.hypot(1.0, tangent)
            for moved in (columns, rotation):
                one, other = moved[:, first], moved[:, second] * (gamma.conj() / size)
                moved[:, first] = cosine * (one - tangent * other)
                moved[:, second] = cosine * (tangent * one + other)
        if not rotated:
            break
    return columns, rotation


def _rounds(count: int) -> Iterator[tuple[Matrix, Matrix]]:
    """Disjoint pairs, a round at a time, until every pair has met: a round-robin tournament."""
    even = count + count % 2
    circle = np.arange(even)
    for _ in range(even - 1):
        first, second = circle[: even // 2], circle[even // 2 :][::-1]
        playing = np.maximum(first, second) < count
        yield first[playing], second[playing]
        circle = np.concatenate([circle[:1], np.roll(circle[1:], 1)])


def _squares(columns: Matrix) -> Matrix:
    return np.asarray(np.sum(np.abs(columns) ** 2, axis=0))


def _double(matrix: Matrix) -> Matrix:
    return matrix.astype(np.result_type(matrix.dtype, np.float64))


def _like(matrix: Matrix, values: Matrix) -> Matrix:
    return values.astype(matrix.dtype, copy=False)
