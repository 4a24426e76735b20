"""Where a CP iteration starts: leading singular vectors, random numbers, or given terms."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array, _lapack
from tnlib._array import Array
from tnlib.cp.als import Terms, measured, normalized
from tnlib.cp.format import CP
from tnlib.cp.products import Data

STARTS = ("hosvd", "random")


def first_terms(data: Data, rank: int, init: str, rng: np.random.Generator) -> Terms:
    """Terms for a batch of tensors: "hosvd" or "random", in double, with errors still unknown."""
    xp = array_namespace(data.matrix)
    batch = data.matrix.shape[0]
    like = xp.empty(0, dtype=_array.double(xp, data.matrix.dtype), device=data.matrix.device)
    factors = []
    for mode, size in enumerate(data.modes):
        found = _leading(data, mode, rank) if init == "hosvd" else like.reshape(batch, 0, size)
        missing = rank - found.shape[1]
        drawn = _array.normal(rng, (batch, missing, size), like) if missing else found[:, :0]
        factors.append(xp.concat([found, drawn], axis=1))
    return normalized(factors, np.full(batch, np.inf))


def _leading(data: Data, mode: int, rank: int) -> Array:
    """Leading left singular vectors of one unfolding, as rows: (batch, at most rank, n)."""
    xp = array_namespace(data.matrix)
    batch = data.matrix.shape[0]
    moved = xp.moveaxis(data.matrix.reshape(batch, *data.modes), mode + 1, 1)
    unfolding = _array.astype(
        moved.reshape(batch, data.modes[mode], -1), _array.double(xp, moved.dtype)
    )
    _, vectors = _lapack.eigh(unfolding @ unfolding.mT)
    return xp.flip(vectors, axis=-1)[..., :rank].mT


def given_terms(init: CP, data: Data, projections: list[Array] | None) -> Terms:
    """Terms of a given decomposition, in the coordinates of `projections` where there are any."""
    like = data.matrix
    xp = array_namespace(like)
    wide = _array.double(xp, like.dtype)
    factors: list[Any] = []
    for k, factor in enumerate(init.factors):
        rows = _array.astype(_array.computable(_array.plain(factor), like), wide).mT
        if projections is not None:
            rows = rows @ _array.astype(projections[k], wide)
        factors.append(rows[None])
    weights = _array.astype(_array.computable(_array.plain(init.weights), like), wide)
    factors[-1] = factors[-1] * weights[None, :, None]
    return measured(data, normalized(factors, np.full(1, np.inf)))
