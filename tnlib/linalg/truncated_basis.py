"""Truncated orthonormal bases of one matrix: the step every decomposition repeats.

For a matrix M the functions here return U with orthonormal columns and the *projected* rest
C = U^H M. Whatever U is, ||M - U C||^2 = ||M||^2 - ||C||^2 (Pythagoras), so the discarded energy
is known and adds up over a sweep; forming C as S V^H instead would lose that.

Three kernels find U:

* ``svd``: triangular factor first when M is far from square, then a dense SVD. Resolves singular
  values down to the unit roundoff.
* ``gram``: eigenvectors of M M^H or M^H M, whichever is smaller, accumulated in float64.
  Resolves singular values down to 1e-8 of the largest, all there is in float32 data.
* ``krylov``: a block Krylov space grown until the captured energy stops rising, for ranks far
  below both sides; see :mod:`tnlib.linalg.krylov`.
"""

from __future__ import annotations

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import gram_matrices, lapack
from tnlib.linalg.basis import (
    Basis,
    Target,
    is_single,
    orthogonal_factors,
    orthonormal,
    rounding_energy,
    tails,
)
from tnlib.linalg.krylov import krylov_basis

# The Krylov space may fill this share of the smaller side before the Gram kernel takes over:
# a third where the rank is given, an eighth where a tolerance leaves the rank open.
KRYLOV_SHARE = (1 / 3, 1 / 8)
# Below this side length a dense eigenproblem is cheaper than any iteration.
KRYLOV_SIDE = 512
# Float64 data that are wanted below this relative error need the SVD: squares resolve 1e-8.
GRAM_FLOOR = 1e-6


def truncated_basis(
    matrix: Array,
    *,
    energy: float,
    max_rank: int | None,
    allowed: float | None,
    method: str,
    rng: np.random.Generator,
) -> Basis:
    """Smallest orthonormal basis of the columns of `matrix` within a rank and an error.

    Parameters
    ----------
    matrix : array, shape (m, n)
        Floating-point data in single precision or better.
    energy : float
        Squared Frobenius norm of `matrix`.
    max_rank : int or None
        Largest number of basis vectors.
    allowed : float or None
        Squared Frobenius norm that may be discarded, None for rounding only. Where both bind,
        `max_rank` wins.
    method : {"auto", "svd", "gram", "krylov"}
        Kernel; "auto" chooses by shape and precision.
    rng : numpy.random.Generator
        Source of the Krylov start block.

    Returns
    -------
    Basis
    """
    side = min(matrix.shape)
    limit = side if max_rank is None else min(max_rank, side)
    if limit == side and allowed is None:
        return _complete(matrix)
    noise = rounding_energy(matrix, energy)
    open_rank = allowed is not None and limit == side
    target = Target(energy, limit, max(allowed or 0.0, noise), open_rank, allowed is not None)
    kernel = _choose(matrix, target) if method == "auto" else method
    if kernel == "krylov":
        share = KRYLOV_SHARE[open_rank] if method == "auto" else 1.0
        found = krylov_basis(matrix, target, rng, max(int(side * share), 1))
        if found is not None:
            return found
        kernel = "gram"
    if kernel == "gram":
        basis = _gram_basis(matrix, target)
        if is_single(matrix) or method == "gram" or basis.discarded > GRAM_FLOOR**2 * energy:
            return basis
    return _svd(matrix, target)


def _choose(matrix: Array, target: Target) -> str:
    """Cheapest kernel that is precise enough for this shape, dtype and target."""
    side = min(matrix.shape)
    tight = target.tolerant and target.allowed < GRAM_FLOOR**2 * target.energy
    if tight and not is_single(matrix):
        return "svd"
    if target.open_rank:
        low_rank = target.allowed > 1e-3 * target.energy
    else:
        low_rank = target.limit <= side // 8
    return "krylov" if side >= KRYLOV_SIDE and low_rank else "gram"


def _complete(matrix: Array) -> Basis:
    """A basis of everything: nothing is discarded and no spectrum is needed."""
    vectors, rest = orthogonal_factors(matrix)
    return Basis(vectors, rest, 0.0, "identity" if rest is matrix else "qr")


def _project(matrix: Array, vectors: Array, discarded: float, kernel: str) -> Basis:
    return Basis(vectors, backend.adjoint(vectors) @ matrix, discarded, kernel)


def _svd(matrix: Array, target: Target) -> Basis:
    rows, columns = matrix.shape
    outer, core = None, matrix
    if columns > 2 * rows:
        core = backend.adjoint(lapack.triangular_factor(backend.adjoint(matrix)))
    elif rows > 2 * columns:
        outer, core = orthogonal_factors(matrix)
    left, values, _ = lapack.svd(core)
    tail = tails(backend.to_numpy(values).astype(np.float64) ** 2)
    rank = target.rank(tail)
    vectors = left[:, :rank] if outer is None else outer @ left[:, :rank]
    return _project(matrix, vectors, float(tail[rank]), "svd")


def _gram_basis(matrix: Array, target: Target) -> Basis:
    rows, columns = matrix.shape
    wide = rows <= columns
    product = gram_matrices.gram(matrix if wide else backend.adjoint(matrix))
    values, eigenvectors = gram_matrices.eigh_top(product, target.limit)
    tail = tails(backend.to_numpy(values))
    if target.limit < product.shape[0]:
        tail = tail + max(target.energy - float(tail[0]), 0.0)
    rank = target.rank(tail)
    vectors = backend.astype(eigenvectors[:, :rank], matrix.dtype)
    if not wide:
        leading = matrix @ vectors
        vectors = orthonormal(leading) if is_single(matrix) else lapack.qr(leading)[0]
    return _project(matrix, vectors, float(tail[rank]), "gram")
