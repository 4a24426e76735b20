"""How well one matrix fits low rank, operators and trains: error against number of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tnlib import mode_sizes
from tnlib.arrays.backend import Array
from tnlib.linalg.preparation import prepare
from tnlib.ranks.array_as_format import Reading, reading
from tnlib.ranks.curve import curve
from tnlib.ranks.parameter_counts import ChainCount, ceilings
from tnlib.ranks.spectra import chain_spectra
from tnlib.surveys.options import Options
from tnlib.surveys.spectrum import Spectrum
from tnlib.trains.mpo import mpo_decompose

Record = dict[str, Any]
# Points of a curve beside those of the budgets.
_POINTS = 8


def modes_of(shape: str, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Balanced modes of rows and columns for ``mpo-3``, ``tt-4`` and the like.

    None where one core would have next to everything: a width is prime, or too small.
    """
    kind, _, cores = shape.partition("-")
    order = int(cores) if kind == "mpo" else int(cores) // 2
    found = mode_sizes.factorize(rows, order), mode_sizes.factorize(columns, order)
    sizes = mode_sizes.paired_modes(*found) if kind == "mpo" else (*found[0], *found[1])
    return None if 1 in sizes else found


def low_rank_curve(spectrum: Spectrum, rows: int, columns: int, most: int) -> Record:
    """The truncated SVD: ranks, numbers of values and errors."""
    limit = min(max(most // (rows + columns), 0), len(spectrum.energies))
    ranks = np.unique(np.geomspace(1, limit, 24).astype(int)) if limit else np.zeros(0, int)
    lost = np.sqrt(np.clip(1.0 - spectrum.shares(ranks), 0.0, None))
    sizes = ranks * (rows + columns)
    return {"ranks": ranks.tolist(), "params": sizes.tolist(), "error": lost.tolist()}


def format_curve(
    read: Callable[[], Array],
    spectrum: Spectrum,
    shape: str,
    modes: tuple[tuple[int, ...], tuple[int, ...]],
    budgets: tuple[int, ...],
    options: Options,
    rng: np.random.Generator,
) -> Record:
    """An operator or a train in given modes: ranks, numbers of values, errors and their bounds.

    The matrix is read anew, so that beside it in its order of modes there is no other copy. The
    bond between the rows and the columns of a train has the matrix's own spectrum.
    """
    how = _reading(read(), shape, modes)
    prepared = prepare(how.array, None, how.axes)
    assert isinstance(how.count, ChainCount)
    chain = how.count.modes
    del how
    known = {len(modes[0]) - 1: spectrum.energies} if shape[0] == "t" and spectrum.exact else None
    # Ranks of an unfolding of which only the leading part is looked at end with that.
    count = ChainCount(chain)
    pairs = zip(ceilings(count, max(budgets)), count.limits, strict=True)
    few = options.leading
    most = [min(top, few) if side > options.exact_side else top for top, side in pairs]
    spectra = chain_spectra(prepared, chain, most, rng, known=known)
    found = curve(spectra, budgets, _POINTS)
    bounds = [spectra.bounds(ranks) for ranks in found]
    return {
        "shape": shape,
        "row_dims": list(modes[0]),
        "col_dims": list(modes[1]),
        "ranks": [list(ranks) for ranks in found],
        "params": [spectra.count.values(ranks) for ranks in found],
        "error": [math.sqrt(spectra.loss(ranks)) for ranks in found],
        "low": [low for low, _ in bounds],
        "high": [high for _, high in bounds],
    }


def _reading(matrix: Array, shape: str, modes: tuple[tuple[int, ...], tuple[int, ...]]) -> Reading:
    if shape.startswith("mpo"):
        return reading(matrix, "mpo", *modes)
    return reading(matrix.reshape(*modes[0], *modes[1]), "tt", None, None)


def best_of(
    read: Callable[[], Array],
    low_rank: Record,
    curves: Sequence[Record],
    budget: int,
    rng: np.random.Generator,
) -> Record | None:
    """What has the least error within a budget; of an operator of several bonds it is measured."""
    options = [("low rank", low_rank), *((curve["shape"], curve) for curve in curves)]
    found: Record | None = None
    for name, points in options:
        fitting = [k for k, size in enumerate(points["params"]) if size <= budget]
        if not fitting:
            continue
        k = min(fitting, key=lambda k: points["error"][k])
        if found is None or points["error"][k] < found["error"]:
            found = {"format": name, "error": points["error"][k], "params": points["params"][k]}
            found |= {"ranks": points["ranks"][k], "measured": "low" not in points}
            if "row_dims" in points:
                exact = points["high"][k] - points["low"][k] <= 1e-6
                found |= {"row_dims": points["row_dims"], "col_dims": points["col_dims"]}
                found["measured"] = exact
    if found and not found["measured"] and found["format"].startswith("mpo"):
        dims = {"row_dims": found["row_dims"], "col_dims": found["col_dims"]}
        mpo: Any = mpo_decompose(read(), found["ranks"], **dims, rng=rng)
        found |= {"error": mpo.error, "measured": True}
    return found


def least_for(
    spectrum: Spectrum, rows: int, columns: int, curves: Sequence[Record], eps: float
) -> Record:
    """The fewest values with an error of surely at most `eps`, of the low rank and of the rest.

    None of a format stands for more values than its curve has, or than the matrix itself.
    """
    kept = np.sqrt(np.clip(1.0 - np.cumsum(spectrum.energies), 0.0, None)) <= eps
    rank = int(np.argmax(kept)) + 1 if kept.any() else None
    size = None if rank is None else rank * (rows + columns)
    found: Record = {"eps": eps, "rank": rank, "low_rank": size}
    for points in curves:
        meeting = [
            size for size, high in zip(points["params"], points["high"], strict=True) if high <= eps
        ]
        found[points["shape"]] = min(meeting, default=None)
    return found
