"""Everything a survey tells of one matrix, as a record that JSON holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack
from tnlib.linalg.basis import Basis
from tnlib.linalg.preparation import prepare
from tnlib.linalg.truncated_basis import truncated_basis
from tnlib.surveys.formats import best_of, format_curve, least_for, low_rank_curve, modes_of
from tnlib.surveys.options import Options
from tnlib.surveys.spectrum import Spectrum, spectrum

Record = dict[str, Any]
# Singular values that a record shows, evenly in the logarithm of their number.
_SHOWN = 48


def matrix_record(read: Callable[[], Array], options: Options, rng: np.random.Generator) -> Record:
    """Norm, ranks, spectrum, power law and formats of a matrix, which is read several times."""
    prepared = prepare(read(), None)
    rows, columns = (int(n) for n in prepared.data.shape)
    found = spectrum(prepared, exact_side=options.exact_side, leading=options.leading, rng=rng)
    del prepared
    budgets = tuple(max(int(share * rows * columns), 1) for share in options.budgets)
    low_rank = low_rank_curve(found, rows, columns, max(budgets))
    curves = []
    for shape in options.shapes if found.norm else ():
        modes = modes_of(shape, rows, columns)
        if modes is not None:
            curves.append(format_curve(read, found, shape, modes, budgets, options, rng))
    best = [best_of(read, low_rank, curves, budget, rng) for budget in budgets]
    return {
        **_of_spectrum(found),
        "low_rank": low_rank,
        "formats": curves,
        "best": [
            None if one is None else {"budget": share, **one}
            for share, one in zip(options.budgets, best, strict=True)
        ],
        "least": [least_for(found, rows, columns, curves, eps) for eps in options.eps],
    }


def _of_spectrum(found: Spectrum) -> Record:
    known = len(found.energies)
    positions = np.unique(np.geomspace(1, known, _SHOWN).round().astype(int)) - 1
    top = math.sqrt(found.energies[0]) if found.norm else 0.0
    return {
        "norm": found.norm,
        "spectral_norm": found.norm * top,
        "stable_rank": found.stable_rank,
        "effective_rank": list(found.effective_rank),
        "rank_limit": found.count,
        "spectrum": {
            "exact": found.exact,
            "known": known,
            "beyond": found.beyond,
            "positions": (positions + 1).tolist(),
            "values": (found.norm * np.sqrt(found.energies[positions])).tolist(),
        },
        "power_law": found.power_law(),
    }


def leading_factors(
    matrix: Array, count: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """The leading singular vectors of a matrix, left ones and right ones times the singular values.

    In single precision; None of the zero matrix.
    """
    prepared = prepare(matrix, None)
    if prepared.energy == 0:
        return None
    basis: Basis = truncated_basis(
        prepared.data,
        energy=prepared.energy,
        max_rank=min(count, *matrix.shape),
        allowed=None,
        method="auto",
        rng=rng,
    )
    vectors, rest = (backend.to_numpy(part) for part in (basis.vectors, basis.rest))
    rotation, values, right = lapack.svd(rest.astype(np.float64))
    scaled = np.ldexp(values[:, None] * right, prepared.exponent)
    return (vectors @ rotation).astype(np.float32), scaled.astype(np.float32)
