"""One budget for many arrays: ranks for each so that the total squared error is least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.common.keywords import keywords_named
from tnlib.common.progress import bar
from tnlib.common.table import aligned
from tnlib.common.type_aliases import RNG, AnyArray
from tnlib.linalg.preparation import prepare
from tnlib.ranks.array_as_format import RankFormat, Reading, reading
from tnlib.ranks.choose_ranks import Task, choose, equal
from tnlib.ranks.parameter_counts import Ranks, ceilings
from tnlib.ranks.profile import RankProfile

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Allocation(Generic[K]):
    """Ranks for many arrays.

    Attributes
    ----------
    ranks : dict
        Ranks of every array, by its name or its position; None for one that is to be kept dense,
        because ranks would cost as many values, or because the budget is best spent so.
    n_params : dict
        Number of values of each.
    upper : dict
        Upper bound of the relative error of each.
    estimate : float
        Estimate of the root of the weighted sum of squared errors, relative to that of the squared
        norms.
    equal_ranks : dict
        For comparison, the largest equal ranks within the same budget; None where they would have
        as many values as the array.
    equal_estimate : float
        Their estimate of the same.

    Examples
    --------
    >>> import numpy as np
    >>> flat = np.random.default_rng(0).standard_normal((64, 64))
    >>> steep = flat @ np.diag(0.5 ** np.arange(64))
    >>> print(allocate_ranks({"flat": flat, "steep": steep}, 4000, format="tt"))
    array  ranks  values  error up to  equal ranks
    flat   30     3840    0.3617       15
    steep  1      128     0.4988       15
    total         3968    0.3644       0.6247
    """

    ranks: dict[K, Ranks | None]
    n_params: dict[K, int]
    upper: dict[K, float]
    estimate: float
    equal_ranks: dict[K, Ranks | None]
    equal_estimate: float

    def __str__(self) -> str:
        rows = [("array", "ranks", "values", "error up to", "equal ranks")]
        for name, ranks in self.ranks.items():
            error, level = f"{self.upper[name]:.4f}", self.equal_ranks[name]
            rows.append(
                (str(name), _spaced(ranks), str(self.n_params[name]), error, _spaced(level))
            )
        total = sum(self.n_params.values())
        rows.append(("total", "", str(total), f"{self.estimate:.4f}", f"{self.equal_estimate:.4f}"))
        return aligned(rows)


def _spaced(ranks: Ranks | None) -> str:
    return "dense" if ranks is None else " ".join(map(str, ranks))


@overload
def allocate_ranks(
    arrays: Mapping[K, AnyArray] | Mapping[K, RankProfile],
    max_params: int,
    *,
    format: RankFormat = ...,
    row_dims: Sequence[int] | None = ...,
    col_dims: Sequence[int] | None = ...,
    weights: Sequence[float] | None = ...,
    relative: bool = ...,
    may_be_dense: bool = ...,
    progress: bool = ...,
    rng: RNG = ...,
) -> Allocation[K]: ...
@overload
def allocate_ranks(
    arrays: Sequence[AnyArray] | Sequence[RankProfile],
    max_params: int,
    *,
    format: RankFormat = ...,
    row_dims: Sequence[int] | None = ...,
    col_dims: Sequence[int] | None = ...,
    weights: Sequence[float] | None = ...,
    relative: bool = ...,
    may_be_dense: bool = ...,
    progress: bool = ...,
    rng: RNG = ...,
) -> Allocation[int]: ...
@own_arithmetic()
@keywords_named
def allocate_ranks(
    arrays: Mapping[Any, Any] | Sequence[Any],
    max_params: int,
    *,
    format: RankFormat = "mpo",
    row_dims: Sequence[int] | None = None,
    col_dims: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    relative: bool = False,
    may_be_dense: bool = True,
    progress: bool = True,
    rng: RNG = None,
) -> Allocation[Any]:
    """Divide a budget of values among arrays so that the total squared error is least.

    What is minimised is the sum over all arrays of the estimated squared error, which
    :func:`rank_profile` gives. An array is kept dense where its ranks would cost as many values, or
    where the budget is best spent so.

    Parameters
    ----------
    arrays : mapping or sequence of arrays, or of RankProfile
        Matrices for "mpo", for example the linear weights of a model by name. A mapping that makes
        an array when it is asked for one is asked for one at a time. Profiles, which know their
        format, stand for arrays that were looked at before, up to the ranks that they know.
    max_params : int
        Largest number of values of all decompositions together.
    format : {"mpo", "tt", "tucker"}, optional
        What the arrays are to become.
    row_dims, col_dims : sequence of int, optional
        Modes of MPOs, for arrays of one shape; by default each is factorised.
    weights : sequence of float, optional
        Weight of each array's squared error, in the order of the arrays.
    relative : bool, optional
        Whether errors are relative to each array's norm; by default they are not, so that an array
        counts by its size.
    may_be_dense : bool, optional
        Whether arrays can be kept dense.
    progress : bool, optional
        Whether to show a progress bar, once a few seconds have gone.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel.

    Returns
    -------
    Allocation

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If there are no arrays, a weight is negative or not finite, the budget is too small for
        ranks of one, or an array cannot be read as the format.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> flat, steep = rng.standard_normal((2, 64, 64))
    >>> steep = steep @ np.diag(0.5 ** np.arange(64))
    >>> found = allocate_ranks([flat, steep], 4000, format="tt")
    >>> found.ranks, found.equal_ranks
    ({0: (30,), 1: (1,)}, {0: (15,), 1: (15,)})
    """
    budget = checks.positive_int("max_params", max_params)
    if not isinstance(arrays, Mapping | Sequence) or isinstance(arrays, str):
        raise TypeError(f"arrays must be a mapping or a sequence, got {type(arrays).__name__}")
    named = [*arrays] if isinstance(arrays, Mapping) else [*range(len(arrays))]
    if not named:
        raise ValueError("arrays is empty; give at least one")
    factors = _weights(weights, len(named))
    checks.flag("relative", relative)
    checks.flag("may_be_dense", may_be_dense)
    generator = backend.as_generator(rng)
    if isinstance(arrays, dict | list | tuple):
        for name in named:
            if not isinstance(arrays[name], RankProfile):
                _read(name, arrays[name], format, row_dims, col_dims)
    spectra = []
    for name in bar(named, "spectra", progress):
        array = arrays[name]
        if isinstance(array, RankProfile):
            spectra.append(array.spectra)
            continue
        how = _read(name, array, format, row_dims, col_dims)
        prepared = prepare(how.array, None, how.axes)
        spectra.append(how.spectra(prepared, ceilings(how.count, budget), generator))
    top = max((found.exponent for found in spectra if found.energy > 0), default=0)
    scales = [math.ldexp(found.energy, 2 * (found.exponent - top)) for found in spectra]
    largest = max(scales) or 1.0
    shares = [1.0 if relative else scale / largest for scale in scales]
    heaviest = max(factors) or 1.0
    scaled = tuple(w / heaviest * share for w, share in zip(factors, shares, strict=True))
    task = Task(tuple(spectra), scaled, may_be_dense)
    chosen, level = choose(task, budget), equal(task, budget)
    whole = math.fsum(scaled) or 1.0
    bounds = [s.bounds(r)[1] if r else 0.0 for s, r in zip(spectra, chosen, strict=True)]
    return Allocation(
        ranks={name: ranks or None for name, ranks in zip(named, chosen, strict=True)},
        n_params={name: task.size(k, chosen[k]) for k, name in enumerate(named)},
        upper=dict(zip(named, bounds, strict=True)),
        estimate=math.sqrt(task.loss(chosen) / whole),
        equal_ranks={name: ranks or None for name, ranks in zip(named, level, strict=True)},
        equal_estimate=math.sqrt(task.loss(level) / whole),
    )


def _read(name: Any, array: AnyArray, *how: Any) -> Reading:
    """What `reading` gives, or its error with the array's name."""
    try:
        return reading(array, *how)
    except (TypeError, ValueError) as error:
        raise type(error)(f"arrays[{name!r}]: {error}") from error


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if isinstance(weights, str) or not isinstance(weights, Sequence | np.ndarray):
        raise TypeError(f"weights must be a sequence of numbers, got {weights!r}")
    values = [checks.tolerance("every weight", weight) for weight in weights]
    if len(values) != count:
        raise ValueError(f"weights must be as many as the arrays, {count}, got {len(values)}")
    return values
