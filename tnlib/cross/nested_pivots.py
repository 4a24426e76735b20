"""Sweeps of a cross approximation over nested sets of pivots.

Bond k has left pivots, index vectors of the first k modes, and right pivots, of the others. A sweep
to the right evaluates the fibres (left pivots) x (mode k) x (right pivots), finds an orthonormal
basis of its columns, and takes the rows of largest volume as the left pivots of the next bond: the
train interpolates the function there (Oseledets and Tyrtyshnikov, Linear Algebra Appl. 432, 2010).
Sweeps to the left do the same mirrored. Before each, the pivots at which it looks are joined by
random ones, through which ranks can grow, and by those at which the last train was worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tnlib.cross.sampling import Sampled, Vector, grid, random_indices
from tnlib.linalg import lapack
from tnlib.linalg.basis import tails
from tnlib.linalg.maxvol import maxvol


@dataclass
class Pivots:
    """Left and right pivots of every bond: arrays (r, k) and (r, d - k) for k = 0, ..., d."""

    left: list[Vector]
    right: list[Vector]

    @classmethod
    def of(cls, points: Vector) -> Pivots:
        """The parts of whole index vectors."""
        order = points.shape[1]
        bonds = range(order + 1)
        return cls(
            [_distinct(points[:, :k]) for k in bonds], [_distinct(points[:, k:]) for k in bonds]
        )


def joined(
    pivots: Pivots,
    worst: Vector,
    limits: Sequence[int],
    shape: Sequence[int],
    rng: np.random.Generator,
) -> Pivots:
    """Pivots with random ones and those of the worst points: half as many again, at least two."""
    left, right = [], []
    for k in range(len(shape) + 1):
        full = 0 < k < len(shape) and len(pivots.left[k]) >= limits[k - 1]
        sets = []
        for old, modes, part in (
            (pivots.left[k], shape[:k], worst[:, :k]),
            (pivots.right[k], shape[k:], worst[:, k:]),
        ):
            more = random_indices(rng, modes, 2 if full else max(2, len(old) // 2))
            sets.append(_distinct(np.concatenate([old, part, more])))
        left.append(sets[0])
        right.append(sets[1])
    return Pivots(left, right)


def sweep(
    values: Sampled,
    pivots: Pivots,
    limits: Sequence[int],
    tolerance: float,
    rightwards: bool,
    reserve: int,
) -> tuple[list[Vector], Pivots, bool]:
    """Cores (r, n, r) of an interpolating train, the pivots, and whether more would add to it.

    `pivots` are those of the side at which the sweep looks; the others are found on the way. More
    would add where all of a bond are independent.
    """
    order = len(values.shape)
    found: list[Vector] = [np.zeros((1, 0), np.int64)]
    cores: list[Vector] = []
    grows = False
    for step in range(order):
        k = step if rightwards else order - 1 - step
        left = found[-1] if rightwards else pivots.left[k]
        right = pivots.right[k + 1] if rightwards else found[-1]
        size = values.shape[k]
        block = values(*grid(left, size, right), reserve=reserve)
        block = block.reshape(len(left), size, len(right))
        if step == order - 1:
            cores.append(block)
            break
        bond = limits[k] if rightwards else limits[k - 1]
        offered = len(right) if rightwards else len(left)
        if rightwards:
            rows, core = _interpolated(block.reshape(-1, len(right)), bond, tolerance)
            cores.append(core.reshape(len(left), size, -1))
            row, middle = np.divmod(rows, size)
            found.append(np.concatenate([left[row], middle[:, None]], axis=1))
        else:
            rows, core = _interpolated(block.reshape(len(left), -1).T, bond, tolerance)
            cores.append(core.T.reshape(-1, size, len(right)))
            middle, column = np.divmod(rows, len(right))
            found.append(np.concatenate([middle[:, None], right[column]], axis=1))
        grows = grows or len(rows) == offered < bond
    whole = [np.zeros((1, order), np.int64)]
    if rightwards:
        return cores, Pivots([*found, *whole], pivots.right), grows
    return cores[::-1], Pivots(pivots.left, [*whole, *found[::-1]]), grows


def _interpolated(matrix: Vector, limit: int, tolerance: float) -> tuple[Vector, Vector]:
    """Rows that span the columns of a matrix to a relative tolerance, and their coefficients."""
    largest = float(np.abs(matrix).max())
    left, values, _ = lapack.svd(matrix / largest if largest else matrix)
    tail = tails(values**2)
    enough = int(np.count_nonzero(tail[:-1] > tolerance**2 * tail[0]))
    return maxvol(left[:, : max(min(enough, limit), 1)])


def attainable(shape: Sequence[int], limits: Sequence[int] | None) -> list[int]:
    """The largest useful rank of every bond."""
    bonds = range(1, len(shape))
    most = [min(math.prod(shape[:k]), math.prod(shape[k:])) for k in bonds]
    return most if limits is None else [min(*pair) for pair in zip(most, limits, strict=True)]


def _distinct(points: Vector) -> Vector:
    """Index vectors, each once; one where they have no axes."""
    return np.unique(points, axis=0) if points.shape[1] else points[:1]
