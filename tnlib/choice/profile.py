"""How well an array can be represented with how many values, before anything is decomposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tnlib import _array, _checks
from tnlib._array import RNG, Array
from tnlib._prepare import prepare
from tnlib._table import aligned
from tnlib.choice.budget import checked
from tnlib.choice.choose import Task, choose
from tnlib.choice.counts import Count, Ranks, ceilings
from tnlib.choice.read import Reading, reading
from tnlib.choice.spectra import Spectra


@dataclass(frozen=True, eq=False, repr=False)
class RankProfile:
    """Error against number of values for a range of ranks.

    The relative Frobenius error of the decomposition that :func:`mpo_decompose`, :func:`tt_svd` or
    :func:`tucker_hosvd` computes with ``ranks[i]`` lies between ``lower[i]`` and ``upper[i]``, and
    mostly near ``estimate[i]``.

    Attributes
    ----------
    format : {"mpo", "tt", "tucker"}
        What the ranks are ranks of.
    shape : tuple of int
        Shape of the array.
    ranks : tuple of tuple of int
        Ranks of every point, in the order of growing size.
    n_params : tuple of int
        Number of values.
    lower, upper : tuple of float
        Bounds of the relative error.
    estimate : tuple of float
        The error if every truncation keeps the same share of what the others have left as of the
        whole array; it lies between the bounds.
    spectra : Spectra
        The singular values of every unfolding that they come from.

    Examples
    --------
    >>> import numpy as np
    >>> i, j = np.ogrid[:32, :64]
    >>> profile = rank_profile(1.0 / (1 + abs(i - j)), [1, 2, 4])
    >>> profile.n_params, [round(error, 3) for error in profile.estimate]
    ((96, 192, 384), [0.301, 0.168, 0.007])
    """

    format: str
    shape: tuple[int, ...]
    ranks: tuple[Ranks, ...]
    n_params: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    estimate: tuple[float, ...]
    spectra: Spectra

    def best_ranks(self, *, max_params: int | None = None, eps: float | None = None) -> Ranks:
        """Ranks for a budget, or the fewest values whose error is surely at most `eps`.

        Parameters
        ----------
        max_params : int, optional
            Largest number of values: the ranks with the least estimated error.
        eps : float, optional
            Relative error: of the points of the profile, the smallest one that meets it.

        Returns
        -------
        tuple of int

        Raises
        ------
        ValueError
            If not exactly one of them is given, or none of the points meets it.

        Examples
        --------
        >>> import numpy as np
        >>> i, j = np.ogrid[:32, :64]
        >>> profile = rank_profile(1.0 / (1 + abs(i - j)), [1, 2, 4, 8])
        >>> profile.best_ranks(max_params=400), profile.best_ranks(eps=0.2)
        ((4,), (2,))
        """
        if (max_params is None) == (eps is None):
            raise ValueError("give either max_params= or eps=")
        if max_params is not None:
            budget = _checks.positive_int("max_params", max_params)
            found = choose(Task((self.spectra,), (1.0,)), budget)[0]
            count, limits = self.spectra.count, self.spectra.limits
            for k, (rank, limit) in enumerate(zip(found, limits, strict=True)):
                if rank == limit < count.limits[k] and _fits(count, k, limit + 1, budget):
                    raise ValueError(
                        f"the profile knows no larger ranks than {limits}, and max_params={budget} "
                        "has room for more; make it without ranks= and with this max_params="
                    )
            return found
        tolerance = _checks.eps(eps) or 0.0
        for ranks, upper in zip(self.ranks, self.upper, strict=True):
            if upper <= tolerance:
                return ranks
        raise ValueError(
            f"no point of the profile has an error of {tolerance:g}; the least upper bound is "
            f"{min(self.upper):.3g} with {self.n_params[-1]} values"
        )

    def plot(self, axes: Any = None, *, label: str | None = None) -> Any:
        """Draw the estimate and the band between the bounds over the number of values.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw; by default new ones.
        label : str, optional
            Name in the legend.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Without `axes`, if matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> profile = rank_profile(np.random.default_rng(0).standard_normal((32, 64)), [1, 4, 16])
        >>> axes = profile.plot(Figure().subplots(), label="noise")
        >>> axes.lines[0].get_label()
        'noise'
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError("plot needs matplotlib: pip install matplotlib") from error
            axes = pyplot.subplots(layout="constrained")[1]
            axes.set_xlabel("values, as a share of the dense array")
            axes.set_ylabel("relative error")
        share = np.array(self.n_params) / math.prod(self.shape)
        (line,) = axes.plot(share, self.estimate, label=label)
        axes.fill_between(share, self.lower, self.upper, alpha=0.2, color=line.get_color(), lw=0)
        return axes

    def __len__(self) -> int:
        return len(self.ranks)

    def __repr__(self) -> str:
        return (
            f"RankProfile(format={self.format!r}, shape={self.shape}, points={len(self)}, "
            f"n_params={self.n_params[0]}..{self.n_params[-1]}, "
            f"estimate={self.estimate[0]:.3g}..{self.estimate[-1]:.3g})"
        )

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("ranks", "values", "share", "error", "from", "to")]
        dense = math.prod(self.shape)
        for k, ranks in enumerate(self.ranks):
            size = self.n_params[k]
            errors = (self.estimate[k], self.lower[k], self.upper[k])
            cells = (f"{error:.4f}" for error in errors)
            rows.append((" ".join(map(str, ranks)), str(size), f"{size / dense:.4f}", *cells))
        return aligned(rows)


def rank_profile(
    W: Array,
    ranks: Sequence[int | Sequence[int]] | None = None,
    *,
    format: str = "mpo",
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    points: int = 40,
    max_params: int | None = None,
    rng: RNG = None,
) -> RankProfile:
    """Find out what ranks an array needs, from the singular values of its unfoldings.

    One pass computes the spectrum of every unfolding; from these follow bounds of the error for
    all ranks at once, and an estimate between them. Nothing is decomposed.

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
    ranks  values  share   error   from    to
    1      96      0.0469  0.3013  0.3013  0.3013
    2      192     0.0938  0.1676  0.1676  0.1676
    4      384     0.1875  0.0068  0.0068  0.0068
    8      768     0.3750  0.0000  0.0000  0.0000
    """
    how = reading(W, format, row_dims, col_dims)
    generator = _array.as_generator(rng)
    count = _checks.positive_int("points", points)
    if ranks is not None and max_params is not None:
        raise ValueError("give ranks= to look at, or max_params= up to which, not both")
    budget = checked(max_params, how.count) or math.prod(how.shape)
    asked = None if ranks is None else _asked(ranks, how)
    prepared = prepare(how.array, None, how.axes)
    if asked is None:
        spectra = how.spectra(prepared, ceilings(how.count, budget), generator)
        chosen = _range(spectra, budget, count)
    else:
        most = [max(entry[k] for entry in asked) for k in range(len(asked[0]))]
        spectra = how.spectra(prepared, most, generator)
        chosen = {spectra.count.clipped(_within(entry, spectra)) for entry in asked}
    ordered = sorted(chosen, key=lambda entry: (spectra.count.values(entry), entry))
    bounds = [spectra.bounds(entry) for entry in ordered]
    return RankProfile(
        format,
        how.shape,
        tuple(ordered),
        tuple(spectra.count.values(entry) for entry in ordered),
        tuple(low for low, _ in bounds),
        tuple(high for _, high in bounds),
        tuple(math.sqrt(spectra.loss(entry)) for entry in ordered),
        spectra,
    )


def _asked(ranks: Any, how: Reading) -> list[Ranks]:
    if isinstance(ranks, str) or not isinstance(ranks, Sequence | np.ndarray | range):
        raise TypeError(f"ranks must be a sequence of ranks to look at, got {ranks!r}")
    if not len(ranks):
        raise ValueError("ranks is empty; leave it out for ranks of all sizes")
    return [how.ranks(entry) for entry in ranks]


def _fits(count: Count, position: int, rank: int, budget: int) -> bool:
    return count.values(count.around(position, rank)) <= budget


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
