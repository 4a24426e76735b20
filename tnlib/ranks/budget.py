"""Ranks of one decomposition from a budget of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.backend import Array
from tnlib.linalg import gram_matrices, lapack
from tnlib.linalg.basis import orthogonal_factors
from tnlib.linalg.preparation import Prepared
from tnlib.ranks.choose_ranks import Task, choose
from tnlib.ranks.parameter_counts import ChainCount, Count, Ranks, TuckerCount, ceilings
from tnlib.ranks.spectra import Spectra, chain_spectra, mode_spectra


def checked(max_params: Any, count: Count) -> int | None:
    """A budget that holds ranks of one at least, or None."""
    if max_params is None:
        return None
    budget = checks.positive_int("max_params", max_params)
    least = count.values((1,) * len(count.limits))
    if budget < least:
        raise ValueError(f"max_params={budget} is too small: ranks of 1 have {least} values")
    return budget


def chain_ranks(
    prepared: Prepared, modes: Sequence[int], ranks: Ranks | None, budget: int, rng: Any
) -> Ranks | None:
    """Ranks of a train of the data for a budget, none above those that are given."""
    count = ChainCount(tuple(modes))
    most = _most(count, ranks, budget)
    if most is None:
        return ranks
    return _chosen(chain_spectra(prepared, modes, most, rng), budget)


def mode_ranks(prepared: Prepared, ranks: Ranks | None, budget: int, rng: Any) -> Ranks | None:
    """Multilinear ranks of the data for a budget, none above those that are given."""
    count = TuckerCount(tuple(prepared.data.shape))
    most = _most(count, ranks, budget)
    if most is None:
        return ranks
    return _chosen(mode_spectra(prepared, most, rng), budget)


def bond_ranks(cores: Sequence[Array], ranks: Ranks | None, budget: int) -> Ranks | None:
    """Ranks to which a train, right-orthonormal but for its first core, is to be rounded."""
    modes = tuple(int(core.shape[1]) for core in cores)
    bonds = tuple(int(core.shape[0]) for core in cores[1:])
    limits = tuple(map(min, bonds, ranks or bonds))
    if ChainCount(modes).values(limits) <= budget:
        return ranks
    energies = []
    center = cores[0]
    for following in cores[1:]:
        matrix = center.reshape(-1, center.shape[2])
        values = backend.to_numpy(lapack.eigvalsh(gram_matrices.gram(backend.adjoint(matrix))))[
            ::-1
        ]
        energies.append(np.maximum(values, 0.0))
        _, rest = orthogonal_factors(matrix)
        center = (rest @ following.reshape(following.shape[0], -1)).reshape(
            -1, *following.shape[1:]
        )
    total = float(energies[0].sum()) or 1.0
    pairs = list(zip(energies, limits, strict=True))
    known = tuple(values[:limit] / total for values, limit in pairs)
    beyond = tuple(float(values[limit:].sum()) / total for values, limit in pairs)
    return _chosen(Spectra(ChainCount(modes), known, beyond, total), budget)


def _most(count: Count, ranks: Ranks | None, budget: int) -> Ranks | None:
    """Ranks that need be looked at; None where nothing has to be given up."""
    limits = count.limits if ranks is None else tuple(map(min, count.limits, ranks))
    if count.values(count.clipped(limits)) <= budget:
        return None
    return tuple(map(min, limits, ceilings(count, budget)))


def _chosen(spectra: Spectra, budget: int) -> Ranks:
    return choose(Task((spectra,), (1.0,)), budget)[0]
