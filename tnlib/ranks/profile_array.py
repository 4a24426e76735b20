"""``rank_profile``: the spectra of all unfoldings, and the ranks at which they are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG, AnyArray
from tnlib.linalg.preparation import prepare
from tnlib.ranks.array_as_format import RankFormat, Reading, reading
from tnlib.ranks.budget import checked
from tnlib.ranks.choose_ranks import Task, choose
from tnlib.ranks.parameter_counts import Ranks, ceilings
from tnlib.ranks.profile import RankProfile
from tnlib.ranks.spectra import Spectra


@own_arithmetic()
@keywords_named
def rank_profile(
    W: AnyArray,
    ranks: Sequence[int | Sequence[int]] | None = None,
    *,
    format: RankFormat = "mpo",
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    points: int = 40,
    max_params: int | None = None,
    progress: bool = True,
    rng: RNG = None,
) -> RankProfile:
    """Find out what ranks an array needs, from the singular values of its unfoldings.

    One pass computes the spectrum of every unfolding; from these follow bounds of the error for
    all ranks at once, and an estimate between them. Nothing is decomposed. Beside an operator
    stand the plain low rank with as many values, and the dense matrix.

    Parameters
    ----------
    W : array
        A matrix for "mpo"; an array with at least two axes for "tt" and "tucker". A train of a
        matrix with its two axes is its truncated SVD.
    ranks : sequence of int or of sequences of int, optional
        Ranks to look at: one number is the largest rank of every bond or mode. By default, for
        `points` numbers of values, those with the least error.
    format : {"mpo", "tt", "tucker"}, optional
        What the array is to become.
    row_dims, col_dims : sequence of int, optional
        Modes of an MPO, as for :func:`mpo_decompose`.
    points : int, optional
        Number of points, where `ranks` is not given.
    max_params : int, optional
        Largest number of values to look at; by default that of the array. Ranks that cannot fit are
        not computed, which is faster.
    progress : bool, optional
        Whether to show a progress bar, once a few seconds have gone.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel, which finds small parts of large spectra.

    Returns
    -------
    RankProfile

    Raises
    ------
    TypeError
        If `W` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `W` is empty or holds nan or inf, or modes, ranks or format do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> i, j = np.ogrid[:32, :64]
    >>> print(rank_profile(1.0 / (1 + abs(i - j)), [1, 2, 4, 8]))
    ranks  values  share   error   from    to      low rank
    1      96      0.0469  0.3013  0.3013  0.3013  0.7380
    2      192     0.0938  0.1676  0.1676  0.1676  0.6200
    4      384     0.1875  0.0068  0.0068  0.0068  0.4827
    8      768     0.3750  0.0000  0.0000  0.0000  0.3441
    dense  2048    1.0000  0.0000  0.0000  0.0000  0.0000
    low rank is better at 0 of 4 points
    """
    how = reading(W, format, row_dims, col_dims)
    generator = backend.as_generator(rng)
    count = checks.positive_int("points", points)
    if ranks is not None and max_params is not None:
        raise ValueError("give ranks= to look at, or max_params= up to which, not both")
    budget = checked(max_params, how.count) or math.prod(how.shape)
    asked = None if ranks is None else _asked(ranks, how)
    checks.flag("progress", progress)
    prepared = prepare(how.array, None, how.axes)
    if asked is None:
        most: Sequence[int] = ceilings(how.count, budget)
    else:
        most = [max(entry[k] for entry in asked) for k in range(len(asked[0]))]
    spectra = how.spectra(prepared, most, generator, progress)
    if asked is None:
        chosen = _range(spectra, budget, count)
    else:
        chosen = {spectra.count.clipped(_within(entry, spectra)) for entry in asked}
    ordered = sorted(chosen, key=lambda entry: (spectra.count.values(entry), entry))
    bounds = [spectra.bounds(entry) for entry in ordered]
    sizes = tuple(spectra.count.values(entry) for entry in ordered)
    return RankProfile(
        format,
        how.shape,
        tuple(ordered),
        sizes,
        tuple(low for low, _ in bounds),
        tuple(high for _, high in bounds),
        tuple(math.sqrt(spectra.loss(entry)) for entry in ordered),
        spectra,
        _low_rank(W, how, sizes, generator, progress),
    )


def _low_rank(
    W: AnyArray, how: Reading, sizes: Sequence[int], rng: np.random.Generator, progress: bool
) -> tuple[float, ...] | None:
    """Errors of the truncated SVD with at most these numbers of values, beside an operator."""
    if how.format != "mpo" or len(how.axes) <= 2:
        return None
    plain = reading(W, "tt", None, None)
    least = sum(how.shape)
    most = [max(max(sizes) // least, 1)]
    spectra = plain.spectra(prepare(plain.array, None, plain.axes), most, rng, progress)
    ranks = [min(size // least, spectra.limits[0]) for size in sizes]
    return tuple(math.sqrt(spectra.loss((rank,))) if rank else 1.0 for rank in ranks)


def _asked(ranks: Any, how: Reading) -> list[Ranks]:
    if isinstance(ranks, str) or not isinstance(ranks, Sequence | np.ndarray | range):
        raise TypeError(f"ranks must be a sequence of ranks to look at, got {ranks!r}")
    if not len(ranks):
        raise ValueError("ranks is empty; leave it out for ranks of all sizes")
    return [how.ranks(entry) for entry in ranks]


def _within(ranks: Ranks, spectra: Spectra) -> Ranks:
    return tuple(min(rank, limit) for rank, limit in zip(ranks, spectra.limits, strict=True))


def _range(spectra: Spectra, budget: int, points: int) -> set[Ranks]:
    """The best ranks for numbers of values that grow evenly from the least to the budget."""
    count = spectra.count
    least = count.values((1,) * len(spectra.limits))
    most = min(max(budget, least), count.values(count.clipped(spectra.limits)))
    sizes = np.geomspace(least, most, points)
    task = Task((spectra,), (1.0,))
    return {choose(task, int(size * (1 + 1e-12)))[0] for size in sizes}
