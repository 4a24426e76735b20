"""What the kernels of a truncated basis share: what is asked of them and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tnlib import _array
from tnlib._array import Array

Vector: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Directions that hold less than this many unit roundoffs are rounding, not data.
NOISE = 8


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
    """What is asked of a basis: at most `limit` vectors, at most `allowed` energy lost."""

    energy: float
    limit: int
    allowed: float
    open_rank: bool

    def rank(self, tail: Vector) -> int:
        """Smallest rank whose tail is allowed, else the limit; ``tail[k]`` is lost at rank k."""
        enough = np.flatnonzero(tail <= self.allowed)
        return min(max(int(enough[0]), 1), self.limit) if enough.size else self.limit


def is_single(matrix: Array) -> bool:
    """Whether `matrix` is in single precision."""
    return _array.dtype_name(matrix.dtype) in ("float32", "complex64")


def tails(squared: Vector) -> Vector:
    """Energy left after 0, 1, 2, ... of the descending squared singular values."""
    return np.append(np.cumsum(np.clip(squared, 0.0, None)[::-1])[::-1], 0.0)
