"""How well an array can be represented with how many values, before anything is decomposed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tnlib.arrays import checks
from tnlib.common.table import aligned
from tnlib.ranks.array_as_format import RankFormat
from tnlib.ranks.choose_ranks import Task, choose
from tnlib.ranks.parameter_counts import Ranks
from tnlib.ranks.spectra import Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    low_rank : tuple of float or None
        For a matrix as an operator of several cores: the error of the plain low rank, the truncated
        SVD, with as many values as each point has at most; 1 where not even one singular vector
        fits. None for other arrays and formats.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import rank_profile
    >>> i, j = np.ogrid[:32, :64]
    >>> profile = rank_profile(1.0 / (1 + abs(i - j)), [1, 2, 4])
    >>> profile.n_params, [round(error, 3) for error in profile.estimate]
    ((96, 192, 384), [0.301, 0.168, 0.007])
    """

    format: RankFormat
    shape: tuple[int, ...]
    ranks: tuple[Ranks, ...]
    n_params: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    estimate: tuple[float, ...]
    spectra: Spectra
    low_rank: tuple[float, ...] | None = None

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
            If not exactly one of them is given, or no point with fewer values than the dense array
            meets `eps`: then the array is best kept dense, and the message says so.

        Examples
        --------
        >>> import numpy as np
        >>> from tnlib import rank_profile
        >>> i, j = np.ogrid[:32, :64]
        >>> profile = rank_profile(1.0 / (1 + abs(i - j)), [1, 2, 4, 8])
        >>> profile.best_ranks(max_params=400), profile.best_ranks(eps=0.2)
        ((4,), (2,))
        """
        if (max_params is None) == (eps is None):
            raise ValueError("give either max_params= or eps=")
        if max_params is not None:
            budget = checks.positive_int("max_params", max_params)
            found = self._chosen(budget)
            if self._reaches(found, budget):
                return found
            raise ValueError(
                f"the profile knows no larger ranks than {self.spectra.limits}, and "
                f"max_params={budget} has room for more; make it without ranks= and with this "
                "max_params="
            )
        tolerance = checks.eps(eps) or 0.0
        dense = math.prod(self.shape)
        for ranks, size, upper in zip(self.ranks, self.n_params, self.upper, strict=True):
            if upper <= tolerance and size < dense:
                return ranks
        if self._needs_dense(tolerance, dense):
            raise ValueError(
                f"dense is the answer: no ranks with fewer than the {dense} values of the array "
                f"itself have an error of surely at most {tolerance:g}; keep it as it is"
            )
        raise ValueError(
            f"no point of the profile has an error of surely at most {tolerance:g}; the least "
            f"upper bound is {min(self.upper):.3g} with {self.n_params[-1]} values, and the dense "
            f"array has {dense}; make it with more points= or larger ranks"
        )

    def _chosen(self, budget: int) -> Ranks:
        return choose(Task((self.spectra,), (1.0,)), budget)[0]

    def _reaches(self, ranks: Ranks, budget: int) -> bool:
        """Whether no rank stops where the profile's knowledge does and not the budget."""
        count, limits = self.spectra.count, self.spectra.limits
        return not any(
            rank == limit < count.limits[k] and count.values(count.around(k, limit + 1)) <= budget
            for k, (rank, limit) in enumerate(zip(ranks, limits, strict=True))
        )

    def _needs_dense(self, eps: float, dense: int) -> bool:
        """Whether no ranks with fewer values than the array itself surely meet a tolerance."""
        count = self.spectra.count
        if count.values((1,) * len(count.limits)) >= dense:
            return True
        most = self._chosen(dense - 1)
        return self._reaches(most, dense - 1) and self.spectra.bounds(most)[1] > eps

    @property
    def _low_rank_wins(self) -> int:
        """At how many points the plain low rank has the lower error."""
        pairs = zip(self.low_rank or (), self.estimate, strict=False)
        return sum(low < estimate for low, estimate in pairs)

    def plot(self, axes: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw the estimate and the band between the bounds over the number of values.

        The plain low rank is a dotted line.

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
        >>> from tnlib import rank_profile
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
        if self.low_rank is not None:
            axes.plot(share, self.low_rank, ":", color=line.get_color())
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
        beside = self.low_rank is not None
        head = ("ranks", "values", "share", "error", "from", "to")
        rows: list[tuple[str, ...]] = [(*head, "low rank") if beside else head]
        dense = math.prod(self.shape)
        for k, ranks in enumerate(self.ranks):
            size = self.n_params[k]
            errors = [self.estimate[k], self.lower[k], self.upper[k]]
            errors += [self.low_rank[k]] if self.low_rank is not None else []
            cells = (f"{error:.4f}" for error in errors)
            rows.append((" ".join(map(str, ranks)), str(size), f"{size / dense:.4f}", *cells))
        rows.append(("dense", str(dense), f"{1:.4f}", *[f"{0:.4f}"] * (4 if beside else 3)))
        if not beside:
            return aligned(rows)
        return f"{aligned(rows)}\nlow rank is better at {self._low_rank_wins} of {len(self)} points"
