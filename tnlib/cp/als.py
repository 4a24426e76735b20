"""Alternating least squares for CP: one mode after the other, each solved exactly.

With A_k (R, n_k) the factor of mode k, G its Gram matrix and M its MTTKRP, the best factor for the
others solves (Hadamard product of the other Grams) A_k = M (Carroll and Chang, Psychometrika 35,
1970; Harshman 1970). The system is solved through its eigenvalues, so that a singular one, from a
rank above the true one or from collinear terms, gets its least solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array
from tnlib._array import Array
from tnlib._basis import Vector
from tnlib.cp.products import Data, gram, hadamard

# Squared errors below this many roundings of the terms are formed from the residual.
_CANCELLED = 1e4
# Eigenvalues of the normal equations below this share of the largest are taken as zero.
_SINGULAR = 1e-14


@dataclass(frozen=True)
class Terms:
    """Factors (batch, R, n_k) with unit rows, weights (batch, R) and relative errors (batch,)."""

    factors: tuple[Array, ...]
    weights: Array
    errors: Vector

    def weighted(self) -> list[Array]:
        """The factors with the weights on the last one."""
        return [*self.factors[:-1], self.factors[-1] * self.weights[..., None]]


def normalized(factors: Sequence[Array], errors: Vector) -> Terms:
    """Factors as unit rows and weights; a term that vanishes keeps unit rows, with weight 0."""
    weights = None
    rows = []
    for factor in factors:
        unit, norms = _unit(factor)
        rows.append(unit)
        weights = norms if weights is None else weights * norms
    return Terms(tuple(rows), weights, errors)


def sweep(data: Data, terms: Terms) -> Terms:
    """Update every mode once, in two passes over the data."""
    factors = list(terms.factors)
    grams = [gram(factor) for factor in factors]
    weights = terms.weights
    product = weights
    for left in (True, False):
        partial = data.partial(factors, left)
        for mode in data.side(left):
            product = data.mttkrp(partial, factors, mode)
            solved = _solve(hadamard(grams, (mode,)), product)
            factors[mode], weights = _unit(solved)
            grams[mode] = gram(factors[mode])
    xp = array_namespace(weights)
    overlap = xp.sum(product * factors[-1] * weights[..., None], axis=(-2, -1))
    own = weights[..., None, :] @ hadamard(grams) @ weights[..., None]
    gained = _array.to_numpy(2 * overlap - own[..., 0, 0])
    energies = np.asarray(data.energies)
    squared = np.clip(1 - gained / energies, 0.0, None)
    found = Terms(tuple(factors), weights, np.sqrt(squared))
    size = _array.to_numpy(xp.sum(weights, axis=-1)) ** 2 / energies
    rounding = _array.unit_roundoff(data.matrix.dtype)
    if np.any(squared < _CANCELLED * rounding * np.maximum(size, 1.0)):
        return Terms(found.factors, weights, data.errors(found.weighted()))
    return found


def _solve(normal: Array, right: Array) -> Array:
    """Least solution of ``normal @ x = right`` for symmetric, maybe singular matrices."""
    xp = array_namespace(normal)
    values, vectors = xp.linalg.eigh(normal)
    keep = values > _SINGULAR * values[..., -1:]
    inverse = xp.where(keep, 1.0 / xp.where(keep, values, 1.0), 0.0)
    return vectors @ (inverse[..., None] * (vectors.mT @ right))


def _unit(factor: Array) -> tuple[Array, Array]:
    """Rows of norm 1 and their norms; zero rows become a unit vector with norm 0."""
    xp = array_namespace(factor)
    norms = xp.linalg.vector_norm(factor, axis=-1)
    first = xp.zeros_like(factor)
    first[..., 0] = 1.0
    there = (norms > 0)[..., None]
    return xp.where(there, factor / xp.where(there, norms[..., None], 1.0), first), norms
