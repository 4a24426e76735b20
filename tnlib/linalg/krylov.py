"""Truncated bases from a block Krylov space, for ranks far below both sides of a matrix.

The space spanned by X, (M M^H) X, (M M^H)^2 X, ... for a random block X = M Omega holds good
approximations of the leading left singular vectors after a few steps, also where the spectrum is
flat (Musco and Musco, NeurIPS 2015). It is kept orthonormal as Q; its image M^H Q, which the next
step needs anyway, gives the projected matrix Q^H M without another pass, and the squared Ritz
values of that projection say how much energy the best rank-r basis inside Q captures. The space
grows until a step adds next to nothing to it.

Of equal singular values such a space finds no more than a block has columns, however long it
grows. So before it is taken, the Krylov space of a second random block is tried beside it, and has
to add next to nothing too.

No random space can prove that it missed nothing. The bound that is stated, an error of 1 + SLACK
times the least of that rank, is what the stopping rule leaves where gains shrink by a tenth or more
per step: then all later steps capture at most nine times what the last one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import gram_matrices, lapack
from tnlib.linalg.basis import (
    Basis,
    Target,
    Vector,
    inner,
    is_single,
    orthonormal,
    rounding_energy,
    tails,
)

# Stop when a step captures less than this share of what is still discarded.
GAIN = 5e-4
# Share by which the error may be above the least of its rank: ten gains, halved by the root.
SLACK = 5 * GAIN
# Columns of a fresh random block that is to find nothing more either, and steps that it takes.
_PROBE, _PROBE_STEPS = 8, 3
# Rounding that a basis may leave of a matrix of its rank, in units of that of one array.
_ROUNDING = 4


def krylov_basis(
    matrix: Array, target: Target, rng: np.random.Generator, size: int
) -> Basis | None:
    """Leading basis from a growing Krylov space, or None if `size` dimensions do not suffice."""
    unresolved = 1e-5 if is_single(matrix) else 1e-12
    before_rank, before_left = 0, np.inf
    for space, images, gram, complete in _krylov_spaces(matrix, target.limit, rng, size):
        count = gram.shape[0]
        if count < target.limit and not (target.open_rank or complete):
            continue
        captured = _captured(gram)
        if captured[-1] > target.energy * (1 + unresolved):
            return None
        tail = np.clip(target.energy - np.append(0.0, captured), 0.0, None)
        rank = min(target.rank(tail), count) if complete else target.rank(tail)
        if rank > count:
            continue
        left = float(tail[rank])
        if left <= target.allowed:
            settled = rank == before_rank
        else:
            settled = before_left - left <= GAIN * left
        if settled and not complete and left > target.allowed:
            probed = _probed(matrix, space, images, gram, rng)
            if probed[rank - 1] - captured[rank - 1] > GAIN * left:
                return None
        if settled or complete:
            found = _extract(matrix, space, images, gram, rank, target)
            return _sound(matrix, found, target, complete)
        before_rank, before_left = rank, left
    return None


def _krylov_spaces(
    matrix: Array, limit: int, rng: np.random.Generator, size: int
) -> Iterator[tuple[Array, Array, Vector, bool]]:
    """Grow the space Q block by block.

    Yields Q, its image M^H Q in double precision, the Gram matrix of the image, and whether Q
    holds the whole column space.
    """
    xp = array_namespace(matrix)
    wide = backend.double(xp, matrix.dtype)
    rows, columns = matrix.shape
    block = min(max(8, min(limit, 128) // 2), rows, columns)
    space = orthonormal(matrix @ backend.normal(rng, (columns, block), matrix), None)
    newest = _image(matrix, space)
    images = backend.astype(newest, wide)
    gram = inner(images, images)
    while True:
        yield space, images, gram, gram.shape[0] == min(rows, columns)
        block = min(newest.shape[1], size - space.shape[1])
        if block <= 0:
            return
        direction = orthonormal(matrix @ orthonormal(newest)[:, -block:], space)
        if direction.shape[1] == 0:
            yield space, images, gram, True
            return
        newest = _image(matrix, direction)
        images_of_newest = backend.astype(newest, wide)
        gram = _bordered(gram, images, images_of_newest)
        space = xp.concat([space, direction], axis=1)
        images = xp.concat([images, images_of_newest], axis=1)


def _bordered(gram: Vector, images: Array, newest: Array) -> Vector:
    """The Gram matrix of the images with the newest after them."""
    border = inner(images, newest)
    return np.block([[gram, border], [border.conj().T, inner(newest, newest)]])


def _captured(gram: Vector) -> Vector:
    """Energies that the best bases of 1, 2, ... vectors inside the space capture."""
    return np.cumsum(np.clip(lapack.eigvalsh(gram)[::-1], 0.0, None))


def _probed(matrix: Array, space: Array, images: Array, gram: Vector, rng: Any) -> Vector:
    """What the space would capture with the Krylov space of a fresh random block beside it."""
    xp = array_namespace(matrix)
    newest = backend.normal(rng, (matrix.shape[1], _PROBE), matrix)
    for _ in range(_PROBE_STEPS):
        direction = orthonormal(matrix @ newest, space)
        if direction.shape[1] == 0:
            break
        newest = _image(matrix, direction)
        wide = backend.astype(newest, images.dtype)
        gram = _bordered(gram, images, wide)
        space = xp.concat([space, direction], axis=1)
        images = xp.concat([images, wide], axis=1)
    return _captured(gram)


def _sound(matrix: Array, found: Basis, target: Target, complete: bool) -> Basis | None:
    """A basis that can be trusted where energies, being squares, resolve too little, or None.

    They do down to a relative error of 1e-3 in single and 1e-6 in double precision. Below it, and
    for a space that stopped growing, only a basis that leaves no more than is allowed is kept.
    What it leaves is measured from ten times that on, since the norm of a projection that was
    computed in single precision is off by more than a rounding error.
    """
    floor = 1e-3 if is_single(matrix) else 1e-6
    if found.discarded > (10 * floor) ** 2 * target.energy and not complete:
        return found
    left = backend.residual_energy(matrix, found.vectors, found.rest)
    resolved = left > floor**2 * target.energy and not complete
    # Where no tolerance is asked for, the rounding of one array is allowed, and a basis made by
    # products of long rows leaves up to about twice that of a matrix of exactly its rank.
    allowed = target.allowed if target.tolerant else _ROUNDING**2 * target.allowed
    return replace(found, discarded=left) if resolved or left <= allowed else None


def _image(matrix: Array, vectors: Array) -> Array:
    """``matrix^H @ vectors`` in the order that reads a row-major matrix along its rows."""
    return backend.adjoint(backend.adjoint(vectors) @ matrix)


def _extract(
    matrix: Array, space: Array, images: Array, gram: Vector, rank: int, target: Target
) -> Basis:
    """The best `rank` vectors inside the space: an SVD of its projection, images^H."""
    if is_single(matrix):
        values, left = gram_matrices.eigh_top(backend.from_numpy(gram, matrix), rank)
    else:
        left, values, _ = lapack.svd(backend.adjoint(lapack.triangular_factor(images)))
        values = values**2
    noise = rounding_energy(matrix, target.energy)
    tail = tails(backend.to_numpy(values))
    rank = min(rank, max(int(np.argmax(tail <= noise)), 1))
    rotation = left[:, :rank]
    rest = backend.astype(backend.adjoint(images @ rotation), matrix.dtype)
    discarded = max(target.energy - backend.energy(rest), 0.0)
    return Basis(space @ backend.astype(rotation, matrix.dtype), rest, discarded, "krylov")
