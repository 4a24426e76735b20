"""Alternating least squares for CP: one mode after the other, each solved exactly.

With A_k (R, n_k) the factor of mode k, G its Gram matrix and M its MTTKRP, the best factor for the
others solves (Hadamard product of the other Grams) A_k = M (Carroll and Chang, Psychometrika 35,
1970; Harshman 1970). The system is solved through its eigenvalues, so that a singular one, from a
rank above the true one or from collinear terms, gets its least solution. The system squares the
condition of the problem: where terms nearly cancel, a sweep can raise a small error, and the terms
before it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from tnlib import _array, _lapack
from tnlib._array import Array
from tnlib._basis import Vector
from tnlib.cp.products import Data, gram, hadamard

# Errors are formed from the residual where their squares are below the first of these many
# roundings of the terms, or where those roundings move them by more than the second many.
_CANCELLED, _COARSE = 1e4, 1e6
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
    """Update every mode once, in two passes over the data; small or rising errors are exact."""
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
    size = np.maximum(_array.to_numpy(xp.sum(weights, axis=-1)) ** 2 / energies, 1.0)
    rounding = _array.unit_roundoff(data.matrix.dtype)
    doubtful = (squared < _CANCELLED * rounding * size) | (_COARSE * found.errors < size)
    return measured(data, found) if np.any(doubtful | _higher(found, terms)) else found


def lower(data: Data, terms: Terms, swept: Terms) -> Terms:
    """For every tensor of the batch its terms after a sweep, or before where the error rose."""
    if not np.any(_higher(swept, terms)):
        return swept
    before = measured(data, terms)
    rose = _higher(swept, before)
    kept = _array.from_numpy(rose, swept.weights)
    xp = array_namespace(swept.weights)
    pairs = zip(before.factors, swept.factors, strict=True)
    return Terms(
        tuple(xp.where(kept[:, None, None], old, new) for old, new in pairs),
        xp.where(kept[:, None], before.weights, swept.weights),
        np.where(rose, before.errors, swept.errors),
    )


def measured(data: Data, terms: Terms) -> Terms:
    """The same terms with their errors from the residual."""
    return Terms(terms.factors, terms.weights, data.errors(terms.weighted()))


def _higher(terms: Terms, other: Terms) -> Vector:
    """Which tensors of the batch have a higher error, or nan, with `terms`."""
    return ~(terms.errors <= other.errors)


def _solve(normal: Array, right: Array) -> Array:
    """Least solution of ``normal @ x = right`` for symmetric, maybe singular matrices."""
    xp = array_namespace(normal)
    values, vectors = _lapack.eigh(normal)
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
