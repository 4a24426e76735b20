"""One sweep of truncated splits through many tensors of one shape.

The splits are those of :mod:`tnlib.trains.sweep` with the Gram kernel at fixed ranks: the leading
eigenvectors of M M^H or M^H M in double precision, whichever is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack
from tnlib.linalg.basis import is_single
from tnlib.linalg.preparation import Prepared, is_moderate, prepare
from tnlib.linalg.truncated_basis import GRAM_FLOOR
from tnlib.mode_sizes import paired_axes, paired_modes
from tnlib.result import Info
from tnlib.trains.sweep import Swept, finished


def sweeps(
    array: Array, rows: Sequence[int], columns: Sequence[int], limits: Sequence[int], dtype: Any
) -> list[Swept | None]:
    """Decompose (b, m, n) matrices; None for those that need another kernel.

    These are zero matrices, those far smaller or larger than the others, and those with an error
    below what squared singular values resolve.
    """
    axes = (0, *(1 + axis for axis in paired_axes(len(rows))))
    prepared = prepare(array.reshape(-1, *rows, *columns), dtype, axes)
    modes = paired_modes(rows, columns)
    batch = prepared.data.reshape(array.shape[0], -1)
    cores, discarded, kernels = _split(batch, modes, limits)
    floor = 1e-3 if is_single(batch) else GRAM_FLOOR
    found: list[Swept | None] = []
    for k, data in enumerate(batch):
        own = Prepared(data, prepared.exponent, backend.energy(data), prepared.out)
        swept = None
        if is_moderate(own.energy, data):
            lost = tuple(float(split[k]) / own.energy for split in discarded)
            info = Info(kernels, lost, None, prepared.compute_name)
            swept = finished([core[k] for core in cores], own, array, None, info)
        truncated = "gram" in kernels
        found.append(None if swept is None or (truncated and swept.error < floor) else swept)
    return found


def _split(
    rest: Array, modes: Sequence[int], limits: Sequence[int]
) -> tuple[list[Array], list[Array], tuple[str, ...]]:
    """Cores (b, r, n, r), and of every split the discarded energies (b,) and the kernel."""
    batch, rank = rest.shape[0], 1
    cores, discarded, kernels = [], [], []
    for mode, limit in zip(modes[:-1], limits, strict=True):
        matrix = rest.reshape(batch, rank * mode, -1)
        vectors, lost, kernel = _vectors(matrix, limit)
        rest = backend.adjoint(vectors) @ matrix
        cores.append(vectors.reshape(batch, rank, mode, -1))
        rank = vectors.shape[2]
        discarded.append(lost)
        kernels.append(kernel)
    cores.append(rest.reshape(batch, rank, modes[-1], 1))
    return cores, discarded, tuple(kernels)


def _vectors(matrix: Array, limit: int) -> tuple[Array, Array, str]:
    """Orthonormal columns of every (m, n) matrix of a batch, at most `limit`; what they leave."""
    xp = array_namespace(matrix)
    batch, rows, columns = matrix.shape
    nothing = xp.zeros((batch,), device=matrix.device)
    if limit >= rows and rows <= columns:
        identity = xp.eye(rows, dtype=matrix.dtype, device=matrix.device)
        return backend.owned(xp.broadcast_to(identity, (batch, rows, rows))), nothing, "identity"
    if limit >= columns:
        return lapack.qr(matrix)[0], nothing, "qr"
    wide = backend.astype(matrix, backend.double(xp, matrix.dtype))
    flipped = wide if rows <= columns else backend.adjoint(wide)
    values, vectors = lapack.eigh(flipped @ backend.adjoint(flipped))
    lost = xp.sum(xp.clip(values[..., :-limit], min=0.0), axis=-1)
    leading = xp.flip(vectors, axis=-1)[..., :limit]
    if rows > columns:
        leading = lapack.qr(wide @ leading)[0]
    return backend.astype(leading, matrix.dtype), lost, "gram"
