"""Singular values of one matrix, and the numbers that are read off them.

Where the smaller side is short all of them are computed, from the Gram matrix. Of a larger matrix
they are the leading ones, from tnlib's Krylov kernel, and the energy of the others is known; what
depends on the others then lies between two bounds, since none of them is above the least that is
known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tnlib.linalg import gram_matrices
from tnlib.linalg.preparation import Prepared
from tnlib.linalg.truncated_basis import truncated_basis

Vector = np.ndarray[Any, np.dtype[np.float64]]
# Fewest singular values that a power law is fitted to.
_FEWEST = 10


class Spectrum:
    """Singular values, descending.

    Parameters
    ----------
    energies : array
        Squares of all singular values, or of the leading ones, as shares of the sum of all.
    count : int
        How many singular values there are.
    norm : float
        The Frobenius norm.
    """

    def __init__(self, energies: Vector, count: int, norm: float) -> None:
        self.energies = energies
        self.count = count
        self.norm = norm

    @property
    def exact(self) -> bool:
        """Whether all are known."""
        return len(self.energies) == self.count

    @property
    def beyond(self) -> float:
        """Energy of those that are not known."""
        return 0.0 if self.exact else max(1.0 - math.fsum(self.energies), 0.0)

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm; 0 for the zero matrix."""
        return 1.0 / float(self.energies[0]) if self.norm else 0.0

    @property
    def effective_rank(self) -> tuple[float, float]:
        """Bounds of the exponential of the entropy of the squared singular values as shares.

        The entropy of those that are not known is least where a few as large as the least that is
        known have all their energy, and most where all are equal: it falls with majorisation.
        """
        if not self.norm:
            return 0.0, 0.0
        known = self.energies[self.energies > 0]
        entropy = -float(np.sum(known * np.log(known)))
        least, rest = float(known[-1]), self.beyond
        if not rest:
            return math.exp(entropy), math.exp(entropy)
        equal = min(rest / (self.count - len(self.energies)), least)
        return math.exp(entropy - rest * math.log(least)), math.exp(
            entropy - rest * math.log(equal)
        )

    def shares(self, ranks: Vector) -> Vector:
        """The energy that truncations to some known ranks keep."""
        kept = np.concatenate([[0.0], np.cumsum(self.energies)])
        return np.asarray(kept[ranks])

    def power_law(self) -> dict[str, float] | None:
        """The exponent of a power law for the largest squared singular values, or None.

        The density of the squares is taken as x^-alpha above x_min; alpha maximises the
        likelihood, and x_min minimises the Kolmogorov-Smirnov distance (Clauset, Shalizi and
        Newman, SIAM Rev. 51, 2009), which is given too, with how many squares are above.
        """
        tail = self.energies[self.energies > 1e-14 * self.energies[0]] if self.norm else []
        if len(tail) < _FEWEST:
            return None
        logs = np.log(tail)
        sums = np.cumsum(logs)
        best: dict[str, float] | None = None
        for count in range(_FEWEST, len(tail) + 1):
            excess = sums[count - 1] - count * logs[count - 1]
            if excess <= 0:
                continue
            alpha = 1.0 + count / excess
            # Of the descending squares: the share above each, by the law and as they are.
            law = np.exp((1.0 - alpha) * (logs[:count] - logs[count - 1]))
            above = np.arange(count) / count
            distance = float(np.maximum(np.abs(law - above), np.abs(law - above - 1 / count)).max())
            if best is None or distance < best["distance"]:
                best = {"alpha": float(alpha), "distance": distance, "count": count}
        return best


def spectrum(
    prepared: Prepared, *, exact_side: int, leading: int, rng: np.random.Generator
) -> Spectrum:
    """The spectrum of a matrix: exact where its smaller side is at most `exact_side`."""
    matrix, energy = prepared.data, prepared.energy
    side = min(matrix.shape)
    norm = math.ldexp(math.sqrt(energy), prepared.exponent)
    if energy == 0:
        return Spectrum(np.zeros(side), side, 0.0)
    if side <= exact_side:
        values = gram_matrices.energies(matrix)
        return Spectrum(values / math.fsum(values), side, norm)
    rank = min(leading, side)
    basis = truncated_basis(
        matrix, energy=energy, max_rank=rank, allowed=None, method="auto", rng=rng
    )
    return Spectrum(gram_matrices.energies(basis.rest) / energy, side, norm)
