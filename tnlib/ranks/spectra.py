"""Singular values of every unfolding: what any choice of ranks loses, before it is made.

With tau_k(r) the energy of unfolding k beyond its r largest singular values, the squared error of
a truncated decomposition with ranks r_k lies between max_k tau_k(r_k) and sum_k tau_k(r_k)
(Oseledets, SIAM J. Sci. Comput. 33, 2011, Theorem 2.2; De Lathauwer, De Moor and Vandewalle, SIAM
J. Matrix Anal. Appl. 21, 2000, Property 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common.progress import bar
from tnlib.linalg import gram_matrices, truncated_basis
from tnlib.linalg.basis import resolution
from tnlib.linalg.preparation import Prepared
from tnlib.ranks.parameter_counts import ChainCount, Count, TuckerCount

Vector = np.ndarray[Any, np.dtype[np.float64]]
# Energies are known to this share of the whole.
_RESOLVED = 1e-15
# A leading part of a spectrum is computed alone where it is at most this share of it, and the side
# is longer than this: of a shorter one all singular values take no longer.
_FEW, _SHORT = 1 / 8, 1024


@dataclass(frozen=True, eq=False)
class Spectra:
    """Energies of every unfolding, as shares of the squared norm.

    Attributes
    ----------
    count : Count
        The format's values as a function of its ranks.
    energies : tuple of float64 arrays
        Squared singular values, descending, of every bond or mode; perhaps only the leading ones.
    beyond : tuple of float
        What the others sum up to. One minus the known ones would cancel: in single precision the
        norm of the array is known to a 10^-8 of its square only.
    energy, exponent : float, int
        The squared Frobenius norm of the array is energy * 4^exponent.
    roundoff : float
        Relative error of rounding a decomposition to the dtype of the array.
    """

    count: Count
    energies: tuple[Vector, ...]
    beyond: tuple[float, ...]
    energy: float
    exponent: int = 0
    roundoff: float = 0.0

    @cached_property
    def tails(self) -> tuple[Vector, ...]:
        """Share of the energy that every rank from 0 on leaves out, for every bond or mode."""
        return tuple(
            np.cumsum(np.concatenate([[rest], values[::-1]]))[::-1]
            for values, rest in zip(self.energies, self.beyond, strict=True)
        )

    @property
    def limits(self) -> tuple[int, ...]:
        """Largest ranks whose loss is known."""
        return tuple(len(values) for values in self.energies)

    def bounds(self, ranks: Sequence[int]) -> tuple[float, float]:
        """Least and largest relative error that a truncation to these ranks can have.

        Singular values below 3e-8 of the norm are not resolved, since energies are squares.
        """
        lost = self._lost(ranks)
        low = math.sqrt(max(max(lost, default=0.0) - _RESOLVED, 0.0)) - self.roundoff
        return max(low, 0.0), min(math.sqrt(math.fsum(lost)), 1.0) + self.roundoff

    def loss(self, ranks: Sequence[int]) -> float:
        """An estimate of the squared error, between the squares of the bounds.

        Every truncation is taken to keep the same share of what the others have left as of the
        whole array.
        """
        lost = self._lost(ranks)
        if max(lost, default=0.0) >= 1.0:
            return 1.0
        return -math.expm1(math.fsum(math.log1p(-t) for t in lost))

    def gain(self, ranks: Sequence[int], position: int) -> float:
        """What the estimate falls by when one rank grows by one."""
        return self.share(ranks, position) * float(self.energies[position][ranks[position]])

    def share(self, ranks: Sequence[int], position: int) -> float:
        """The part of the energy that the other truncations keep, by the same estimate."""
        lost = self._lost(ranks)
        return math.prod(1.0 - t for k, t in enumerate(lost) if k != position)

    def _lost(self, ranks: Sequence[int]) -> list[float]:
        return [float(tail[rank]) for tail, rank in zip(self.tails, ranks, strict=True)]


def chain_spectra(
    prepared: Prepared,
    modes: Sequence[int],
    most: Sequence[int | None],
    rng: Any,
    progress: bool = False,
    known: Mapping[int, Vector] | None = None,
) -> Spectra:
    """Spectra of the unfoldings of a train, each up to a largest rank.

    `known` has all energies of some bonds, as shares of their sum.
    """
    unfoldings = [prepared.data.reshape(math.prod(modes[:k]), -1) for k in range(1, len(modes))]
    return _spectra(ChainCount(tuple(modes)), unfoldings, prepared, most, rng, progress, known)


def mode_spectra(
    prepared: Prepared, most: Sequence[int | None], rng: Any, progress: bool = False
) -> Spectra:
    """Spectra of the mode unfoldings of an array, each up to a largest rank."""
    xp = array_namespace(prepared.data)
    shape = tuple(prepared.data.shape)
    unfoldings = [
        xp.moveaxis(prepared.data, k, 0).reshape(size, -1) for k, size in enumerate(shape)
    ]
    return _spectra(TuckerCount(shape), unfoldings, prepared, most, rng, progress)


def _spectra(
    count: Count,
    unfoldings: Sequence[Array],
    prepared: Prepared,
    most: Sequence[int | None],
    rng: Any,
    progress: bool,
    known: Mapping[int, Vector] | None = None,
) -> Spectra:
    found = []
    asked_of = list(enumerate(zip(unfoldings, count.limits, most, strict=True)))
    for position, (matrix, limit, asked) in bar(asked_of, "spectra", progress):
        rank = limit if asked is None else min(limit, asked)
        if known is not None and position in known:
            values = known[position]
            found.append((values[:rank], math.fsum(values[rank:])))
        else:
            found.append(_energies(matrix, rank, prepared.energy, rng))
    arrays = math.sqrt(len(unfoldings) + 1)
    floor = max(backend.unit_roundoff(prepared.out), resolution(prepared.data.dtype))
    return Spectra(
        count,
        tuple(values for values, _ in found),
        tuple(rest for _, rest in found),
        prepared.energy,
        prepared.exponent,
        arrays * floor if prepared.energy else 0.0,
    )


def _energies(matrix: Array, rank: int, energy: float, rng: Any) -> tuple[Vector, float]:
    """The largest `rank` squared singular values, descending, and the sum of the others.

    As shares of the sum of all.
    """
    if energy == 0.0:
        return np.zeros(rank), 0.0
    side = min(matrix.shape)
    if side > _SHORT and rank <= side * _FEW:
        basis = truncated_basis.truncated_basis(
            matrix, energy=energy, max_rank=rank, allowed=None, method="auto", rng=rng
        )
        # Rows of the rest need not be orthogonal.
        found = gram_matrices.energies(basis.rest)
        values = np.zeros(rank)
        values[: len(found)] = found
        rest, total = backend.residual_energy(matrix, basis.vectors, basis.rest), energy
    else:
        values = gram_matrices.energies(matrix)
        values, rest, total = values[:rank], math.fsum(values[rank:]), math.fsum(values)
    return values / total, rest / total
