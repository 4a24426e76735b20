"""Where a CP iteration starts: leading singular vectors, random numbers, or given terms."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import Start
from tnlib.cp.als import Terms, measured, normalized
from tnlib.cp.format import CP
from tnlib.cp.mttkrp import Data, conj, contracted
from tnlib.linalg import lapack
from tnlib.linalg.gram_matrices import gram

STARTS: tuple[Start, ...] = get_args(Start)
# Norms below this share of the largest are rounding of the Gram matrix that they come from.
_NOTHING = 1e-7


def first_terms(data: Data, rank: int, init: Start, rng: np.random.Generator) -> Terms:
    """Terms for a batch of tensors: "hosvd" or "random", in double, with errors still unknown."""
    xp = array_namespace(data.matrix)
    batch = data.matrix.shape[0]
    like = xp.empty(0, dtype=data.double, device=data.matrix.device)
    factors = []
    for mode, size in enumerate(data.modes):
        found = like.reshape(batch, 0, size)
        if init == "hosvd":
            found = _filled(_leading(data, mode, rank), rng)
        missing = rank - found.shape[1]
        drawn = backend.normal(rng, (batch, missing, size), like) if missing else found[:, :0]
        factors.append(xp.concat([found, drawn], axis=1))
    return directions(normalized(factors, np.ones(batch)))


def _leading(data: Data, mode: int, rank: int) -> Array:
    """Leading left singular vectors of one unfolding, as rows: (batch, at most rank, n).

    From the Gram matrix of its smaller side, so a long mode costs no square of itself. There are no
    more of them than that side; the rows of a long mode have the singular values as norms.
    """
    xp = array_namespace(data.matrix)
    batch = data.matrix.shape[0]
    moved = xp.moveaxis(data.matrix.reshape(batch, *data.modes), mode + 1, 1)
    unfolding = moved.reshape(batch, data.modes[mode], -1)
    tall = unfolding.shape[1] > unfolding.shape[2]
    sides = [gram(backend.adjoint(item) if tall else item) for item in unfolding]
    _, vectors = lapack.eigh(xp.stack(sides))
    leading = xp.flip(vectors, axis=-1)[..., :rank].mT
    return contracted(leading, unfolding, True) if tall else leading


def _filled(rows: Array, rng: np.random.Generator) -> Array:
    """`rows` (batch, R, n), those that are nothing beside the longest replaced by random ones."""
    xp = array_namespace(rows)
    norms = xp.linalg.vector_norm(rows, axis=-1)
    nothing = norms <= _NOTHING * xp.max(norms, axis=-1, keepdims=True)
    if not bool(xp.any(nothing)):
        return rows
    return xp.where(nothing[..., None], backend.normal(rng, tuple(rows.shape), rows), rows)


def directions(terms: Terms) -> Terms:
    """The same factors with weights 0."""
    weights = array_namespace(terms.weights).zeros_like(terms.weights)
    return Terms(terms.factors, weights, np.ones_like(terms.errors))


def given_terms(init: CP[Any], data: Data, projections: list[Array] | None) -> Terms:
    """Terms of a given decomposition, in the coordinates of `projections` where there are any.

    Terms that fit worse than nothing only give directions.
    """
    xp = array_namespace(data.matrix)
    rows = [_rows(factor, data).mT[None] for factor in init.factors]
    if projections is not None:
        wide = [backend.astype(basis, data.double) for basis in projections]
        rows = [factor @ conj(basis) for factor, basis in zip(rows, wide, strict=True)]
    units = normalized(rows, np.ones(1))
    factors = list(units.factors)
    for mode in data.fixed:
        factors[mode] = xp.where(xp.abs(rows[mode]) > 0, factors[mode], rows[mode])
    weights = _rows(init.weights, data)[None]
    sizes = xp.abs(weights)
    phases = xp.where(sizes > 0, weights, xp.ones_like(weights)) / xp.where(sizes > 0, sizes, 1.0)
    factors[data.free[0]] = factors[data.free[0]] * phases[..., None]
    terms = Terms(tuple(factors), units.weights * sizes, units.errors)
    terms = measured(data, terms, data.ridge)
    return terms if terms.errors[0] < 1 else directions(terms)


def _rows(values: Array, data: Data) -> Array:
    """A given array in the library of the data, in double precision."""
    return backend.astype(backend.computable(backend.plain(values), data.matrix), data.double)
