"""What the kernels of a truncated basis share: what is asked of them and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack

Vector: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Directions that hold less than this many unit roundoffs are rounding, not data.
_ROUNDOFFS = 8


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the leading column space, and what it leaves.

    Attributes
    ----------
    vectors : array, shape (m, r)
        Orthonormal columns.
    rest : array, shape (r, n)
        ``vectors^H @ matrix``.
    discarded : float
        Squared Frobenius norm of what the basis does not hold.
    kernel : str
        How it was found: "identity", "qr", "svd", "gram" or "krylov".
    """

    vectors: Array
    rest: Array
    discarded: float
    kernel: str


@dataclass(frozen=True)
class Target:
    """What is asked of a basis: at most `limit` vectors, at most `allowed` energy lost.

    `tolerant` says that the caller asked for a tolerance, `open_rank` that only it sets the rank.
    """

    energy: float
    limit: int
    allowed: float
    open_rank: bool
    tolerant: bool

    def rank(self, tail: Vector) -> int:
        """Smallest rank whose tail is allowed, else the limit; ``tail[k]`` is lost at rank k."""
        enough = np.flatnonzero(tail <= self.allowed)
        return min(max(int(enough[0]), 1), self.limit) if enough.size else self.limit


def is_single(matrix: Array) -> bool:
    """Whether `matrix` is in single precision."""
    return backend.dtype_name(matrix.dtype) in ("float32", "complex64")


def resolution(dtype: Any) -> float:
    """Size, relative to the whole, below which a direction in arithmetic of `dtype` is rounding."""
    return _ROUNDOFFS * backend.unit_roundoff(dtype)


def rounding_energy(array: Array, energy: float) -> float:
    """Energy that is only rounding in an array of the given energy and the dtype of `array`."""
    return resolution(array.dtype) ** 2 * energy


def tails(squared: Vector) -> Vector:
    """Energy left after 0, 1, 2, ... of the descending squared singular values."""
    return np.append(np.cumsum(np.clip(squared, 0.0, None)[::-1])[::-1], 0.0)


def inner(left: Array, right: Array) -> Vector:
    """``left^H @ right`` of double arrays; small, so it is kept and solved by NumPy."""
    return backend.to_numpy(backend.adjoint(left) @ right)


def orthonormal(block: Array, space: Array | None = None) -> Array:
    """Orthonormal columns for `block` outside `space`; directions that vanish are dropped.

    Projection and whitening by the block's Gram matrix in float64, both done twice: matrix
    products only, where a Householder QR of a tall thin block waits for memory. The first time,
    directions are dropped that are rounding of the block as it came, or that its Gram matrix does
    not resolve (1e-7 of the largest); the second time, those that turn out to lie in `space`.
    """
    xp = array_namespace(block)
    wide = backend.double(xp, block.dtype)
    noise = rounding_energy(block, backend.energy(block))
    for first in (True, False):
        if space is not None:
            block = block - space @ (backend.adjoint(space) @ block)
        doubled = backend.astype(block, wide)
        values, vectors = lapack.eigh(inner(doubled, doubled))
        keep = values > (max(1e-14 * values.max(initial=0.0), noise) if first else 0.25)
        scaled = vectors[:, keep] / np.sqrt(values[keep])
        block = block @ backend.astype(backend.from_numpy(scaled, block), block.dtype)
    return block


def orthogonal_factors(matrix: Array) -> tuple[Array, Array]:
    """Q with orthonormal columns and R with ``matrix = Q R`` up to rounding.

    A rank-revealing replacement of the QR factorisation made of matrix products: whitening
    resolves directions down to 1e-7 of the largest, a second one of what is left those below.
    Columns are brought to one scale first, since what follows may make a small one large. Q has
    as many columns as there are directions above rounding, at least one.
    """
    xp = array_namespace(matrix)
    rows, columns = matrix.shape
    if rows <= columns:
        return xp.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix
    scaled = matrix * backend.column_scales(matrix)
    space = orthonormal(scaled)
    rest = scaled - space @ (backend.adjoint(space) @ scaled)
    missing = columns - space.shape[1]
    if missing and backend.energy(rest) > rounding_energy(scaled, backend.energy(scaled)):
        more = orthonormal(rest, space)
        if more.shape[1] > missing:
            strongest = lapack.svd(backend.adjoint(more) @ rest)[0]
            more = more @ strongest[:, :missing]
        space = xp.concat([space, more], axis=1)
    if space.shape[1] == 0:
        space = xp.eye(rows, 1, dtype=matrix.dtype, device=matrix.device)
    return space, backend.adjoint(space) @ matrix
