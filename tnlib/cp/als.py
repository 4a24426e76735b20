"""Alternating least squares for CP: one mode after the other, each solved exactly.

With A_k (R, n_k) the factor of mode k, G its Gram matrix and M its MTTKRP, the best factor for the
others solves (Hadamard product of the other Grams) A_k = M (Carroll and Chang, Psychometrika 35,
1970; Harshman 1970). Its diagonal is raised by a ridge, which adds that share of the squared
weights to the squared error that falls from sweep to sweep (Li, Kindermann and Navasca, Linear
Algebra Appl. 438, 2013). A ridge that starts large and vanishes keeps terms from cancelling before
they have found their places; the least one (:attr:`Data.ridge`) is what rounding the result costs.
The system is solved through its eigenvalues, so that a singular one, from a rank above the true
one or from collinear terms, gets its least solution.

An eigenvalue s multiplies the rounding of M by 1/s and that of the fit by 1/sqrt(s). So a sweep
with products in single precision is only used while that stays below its error. The system squares
the condition of the problem: where terms nearly cancel, a sweep can raise a small error, and the
terms before it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.cp import masked
from tnlib.cp.mttkrp import Data, conj, gram, hadamard, normal, real
from tnlib.linalg import lapack
from tnlib.linalg.basis import Vector

# Errors are formed from the residual where their squares are below the first of these many
# roundings of the terms, or where those roundings move them by more than the second many.
_CANCELLED, _COARSE = 1e4, 1e6
# Eigenvalues of the normal equations below this share of the largest are taken as zero.
_SINGULAR = 1e-14
# Share of the error that rounding in single precision may add to a fit, and its roundings.
_UNSEEN, _ROUNDINGS = 1e-2, 4


@dataclass(frozen=True)
class Terms:
    """Factors (batch, R, n_k) with unit rows, weights (batch, R) and relative errors (batch,).

    The errors have the share of the ridge in them.
    """

    factors: tuple[Array, ...]
    weights: Array
    errors: Vector

    def weighted(self) -> list[Array]:
        """The factors with the weights on the last one."""
        return [*self.factors[:-1], self.factors[-1] * self.weights[..., None]]

    def row(self, row: int) -> Terms:
        """The terms of one tensor of a batch."""
        own = slice(row, row + 1)
        factors = tuple(factor[own] for factor in self.factors)
        return Terms(factors, self.weights[own], self.errors[own])


def normalized(factors: Sequence[Array], errors: Vector) -> Terms:
    """Factors as unit rows and weights; a term that vanishes keeps unit rows, with weight 0."""
    weights = None
    rows = []
    for factor in factors:
        unit, norms = _unit(factor)
        rows.append(unit)
        weights = norms if weights is None else weights * norms
    return Terms(tuple(rows), weights, errors)


def sweep(data: Data, terms: Terms, ridge: float) -> tuple[Terms, bool]:
    """Update every free mode once, in two passes over the data; small or rising errors are exact.

    Also whether the precision of the products was enough.
    """
    factors = list(terms.factors)
    grams = [gram(factor) for factor in factors]
    weights = product = terms.weights
    last = len(factors) - 1
    least: Vector = np.full(len(data.energies), np.inf)
    for left in (True, False):
        modes = [mode for mode in data.side(left) if mode in data.free]
        if not modes:
            continue
        partial = data.partial(factors, left)
        seen = None if data.mask is None else masked.Rows.of(data, factors, left)
        for mode in modes:
            last, product = mode, data.mttkrp(partial, factors, mode)
            if seen is None:
                solved, values = _solve(normal(grams, mode, ridge), product)
                if not data.wide:
                    least = np.minimum(least, _least_share(values))
            else:
                matrices = seen.normals(factors, grams, mode, ridge)
                solved = _solve(matrices, product.mT[..., None])[0][..., 0].mT
            factors[mode], weights = _unit(solved)
            grams[mode] = gram(factors[mode])
    xp = array_namespace(weights)
    found = Terms(tuple(factors), weights, terms.errors)
    if data.mask is not None:
        return measured(data, found, ridge), True
    overlap = xp.sum(real(conj(factors[last]) * product) * weights[..., None], axis=(-2, -1))
    own = weights[..., None, :] @ real(hadamard(grams)) @ weights[..., None]
    gained = backend.to_numpy(2 * overlap - own[..., 0, 0])
    energies = np.asarray(data.energies)
    squared = np.clip(1 - gained / energies, 0.0, None) + _rounded(data, weights, ridge)
    found = Terms(found.factors, weights, np.sqrt(squared))
    size = np.maximum(backend.to_numpy(xp.sum(weights, axis=-1)) ** 2 / energies, 1.0)
    rounding = backend.unit_roundoff(data.dtype)
    doubtful = (squared < _CANCELLED * rounding * size) | (_COARSE * found.errors < size)
    found = measured(data, found, ridge) if np.any(doubtful | _higher(found, terms)) else found
    return found, data.wide or _resolved(data, found, least, size)


def _resolved(data: Data, terms: Terms, least: Vector, size: Vector) -> bool:
    """Whether rounding in single precision is not seen beside the errors."""
    roundoff = _ROUNDINGS * backend.unit_roundoff(data.dtype)
    rank = terms.weights.shape[-1]
    noise = roundoff * np.sqrt(rank / np.maximum(least, _SINGULAR) + size)
    return bool(np.all(noise < _UNSEEN * terms.errors))


def lower(data: Data, terms: Terms, swept: Terms, ridge: float) -> Terms:
    """For every tensor of the batch its terms after a sweep, or before where the error rose."""
    if not np.any(_higher(swept, terms)):
        return swept
    before = measured(data, terms, ridge)
    rose = _higher(swept, before)
    kept = backend.from_numpy(rose, swept.weights)
    xp = array_namespace(swept.weights)
    pairs = zip(before.factors, swept.factors, strict=True)
    return Terms(
        tuple(xp.where(kept[:, None, None], old, new) for old, new in pairs),
        xp.where(kept[:, None], before.weights, swept.weights),
        np.where(rose, before.errors, swept.errors),
    )


def measured(data: Data, terms: Terms, ridge: float) -> Terms:
    """The same terms with their errors from the residual."""
    squared = data.errors(terms.weighted()) ** 2 + _rounded(data, terms.weights, ridge)
    return Terms(terms.factors, terms.weights, np.sqrt(squared))


def _rounded(data: Data, weights: Array, ridge: float) -> Vector:
    """Share of the energies that rounding the terms is expected to take."""
    squares = backend.to_numpy(array_namespace(weights).sum(weights**2, axis=-1))
    share: Vector = ridge * squares / np.asarray(data.energies)
    return share


def _higher(terms: Terms, other: Terms) -> Vector:
    """Which tensors of the batch have a higher error, or nan, with `terms`."""
    return ~(terms.errors <= other.errors)


def _solve(normal: Array, right: Array) -> tuple[Array, Array]:
    """Least solution of ``normal @ x = right`` for Hermitian, maybe singular matrices.

    Also their eigenvalues, ascending.
    """
    xp = array_namespace(normal)
    values, vectors = lapack.eigh(normal)
    keep = values > _SINGULAR * values[..., -1:]
    inverse = xp.where(keep, 1.0 / xp.where(keep, values, 1.0), 0.0)
    return vectors @ (inverse[..., None] * (backend.adjoint(vectors) @ right)), values


def _least_share(values: Array) -> Vector:
    """The least of ascending eigenvalues as a share of the largest."""
    least, largest = (backend.to_numpy(values[..., k]) for k in (0, -1))
    share: Vector = least / np.where(largest > 0, largest, 1.0)
    return share


def _unit(factor: Array) -> tuple[Array, Array]:
    """Rows of norm 1 and their norms; zero rows become a unit vector with norm 0."""
    xp = array_namespace(factor)
    norms = xp.linalg.vector_norm(factor, axis=-1)
    first = xp.zeros_like(factor)
    first[..., 0] = 1.0
    there = (norms > 0)[..., None]
    return xp.where(there, factor / xp.where(there, norms[..., None], 1.0), first), norms
