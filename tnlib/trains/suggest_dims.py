"""Which modes compress a matrix best: a few shapes, each decomposed and measured.

The modes ``(m, 1)`` and ``(1, n)`` make an operator of two cores that is the truncated SVD, and a
single core is the matrix itself. So plain low rank and the dense matrix are shapes like the others,
and stand beside them: where the modes of an operator do not fit the matrix, one of them is better.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from tnlib.arrays import array_checks, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.progress import bar
from tnlib.common.table import aligned
from tnlib.common.type_aliases import RNG, AnyArray
from tnlib.mode_sizes import factorize, paired_modes
from tnlib.ranks.parameter_counts import ChainCount
from tnlib.trains.mpo import mpo_decompose

# Without a budget or a tolerance, values are this share of the matrix.
_SHARE = 0.1

Modes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class DimsSuggestion:
    """Modes of a matrix with what a decomposition in them gave.

    Attributes
    ----------
    row_dims, col_dims : tuple of int
        The modes.
    ranks : tuple of int
        Ranks of the decomposition, the outer ones included.
    n_params : int
        Number of values.
    error : float
        Relative error of the decomposition, measured.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((12, 16))
    >>> best = suggest_dims(W, max_params=100, orders=(2,))[0]
    >>> best.row_dims, best.col_dims, best.ranks, best.n_params, round(best.error, 2)
    ((4, 3), (4, 4), (1, 3, 1), 84, 0.63)
    >>> best.kind
    'mpo'
    """

    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    ranks: tuple[int, ...]
    n_params: int
    error: float

    @property
    def kind(self) -> Literal["mpo", "low rank", "dense"]:
        """What an operator of these modes is."""
        if len(self.row_dims) == 1:
            return "dense"
        split = len(self.row_dims) == 2 and self.row_dims[1] == self.col_dims[0] == 1
        return "low rank" if split else "mpo"


@dataclass(frozen=True, repr=False)
class DimsSuggestions:
    """Mode shapes in order, the best first; printing them shows a table and which kind wins.

    Attributes
    ----------
    suggestions : tuple of DimsSuggestion
        Among them always the plain low rank and the dense matrix. Those with more values than
        `max_params` come last.
    max_params : int or None
        The budget by which they were compared; None for a tolerance.
    untried : int
        Shapes that were left out when the time was up.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((12, 16))
    >>> print(suggest_dims(W, max_params=100, orders=(2,)))
    kind      rows  columns  ranks  values  error
    mpo       4 3   4 4      3      84      0.6336
    low rank  12 1  1 16     3      84      0.6649
    mpo       3 4   4 4      3      84      0.6843
    dense     12    16              192     0.0000
    best within 100 values: mpo
    """

    suggestions: tuple[DimsSuggestion, ...]
    max_params: int | None
    untried: int = 0

    @overload
    def __getitem__(self, position: int) -> DimsSuggestion: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[DimsSuggestion, ...]: ...
    def __getitem__(self, position: int | slice) -> DimsSuggestion | tuple[DimsSuggestion, ...]:
        return self.suggestions[position]

    def __len__(self) -> int:
        return len(self.suggestions)

    def __iter__(self) -> Iterator[DimsSuggestion]:
        return iter(self.suggestions)

    def __repr__(self) -> str:
        return f"DimsSuggestions({len(self)} shapes, best={self.suggestions[0]})"

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("kind", "rows", "columns", "ranks", "values", "error")]
        for one in self.suggestions:
            modes = (" ".join(map(str, dims)) for dims in (one.row_dims, one.col_dims))
            ranks = " ".join(map(str, one.ranks[1:-1]))
            rows.append((one.kind, *modes, ranks, str(one.n_params), f"{one.error:.4f}"))
        limit = "" if self.max_params is None else f" within {self.max_params} values"
        verdict = f"best{limit}: {self.suggestions[0].kind}"
        if self.untried:
            verdict += f"; {self.untried} shapes were not tried, for want of time"
        return f"{aligned(rows)}\n{verdict}"


@own_arithmetic()
@keywords_named
def suggest_dims(
    W: AnyArray,
    *,
    max_params: int | None = None,
    eps: float | None = None,
    orders: Sequence[int] = (2, 3, 4),
    time_limit: float | None = None,
    progress: bool = True,
    rng: RNG = None,
) -> DimsSuggestions:
    """Try mode shapes for an MPO of a matrix, and rank them by what they achieve.

    For every order the balanced factors of both sides are tried, ascending and descending, which
    decides which parts of rows and columns are paired. Beside them always stand the plain low rank,
    which is the operator of the modes ``(m, 1)`` and ``(1, n)``, and the dense matrix.

    Parameters
    ----------
    W : array, shape (m, n)
        As for :func:`mpo_decompose`.
    max_params : int, optional
        Budget of values: the shapes are ranked by error. By default a tenth of the matrix.
    eps : float, optional
        Relative error: the shapes are ranked by the number of values that it takes.
    orders : sequence of int, optional
        Numbers of cores to try.
    time_limit : float, optional
        Seconds after which no further shape is begun. The plain low rank is always tried.
    progress : bool, optional
        Whether to show a progress bar, once a few seconds have gone.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel.

    Returns
    -------
    DimsSuggestions
        A sequence of :class:`DimsSuggestion`, the best first.

    Raises
    ------
    TypeError
        If `W` is not a dense numeric array, or an argument has the wrong type.
    ValueError
        If `W` is not a matrix, both a budget and a tolerance are given, no order is, or the budget
        is too small for every shape.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.kron(np.arange(12.0).reshape(3, 4), np.random.default_rng(0).random((6, 4)))
    >>> best = suggest_dims(W, max_params=40, orders=(2,))[0]
    >>> best.row_dims, best.col_dims, best.error < 1e-7
    ((3, 6), (4, 4), True)
    """
    matrix = array_checks.tensor("W", W)
    if matrix.ndim != 2:
        raise ValueError(f"W must be a matrix, got shape {tuple(matrix.shape)}")
    if max_params is not None and eps is not None:
        raise ValueError("give max_params= or eps=, by which the shapes are compared, not both")
    budget = None if max_params is None else checks.positive_int("max_params", max_params)
    tolerance = checks.eps(eps)
    seconds = None if time_limit is None else checks.tolerance("time_limit", time_limit)
    checks.flag("progress", progress)
    rows, columns = (int(n) for n in matrix.shape)
    low_rank = ((rows, 1), (1, columns))
    tried = [pair for n in checks.sizes("orders", orders) for pair in _shapes((rows, columns), n)]
    shapes = list(dict.fromkeys([low_rank, *(pair for pair in tried if len(pair[0]) > 1)]))
    if tolerance is None and budget is None:
        budget = max(int(_SHARE * rows * columns), min(_least(*pair) for pair in shapes))
    if budget is not None:
        fitting = [pair for pair in shapes if _least(*pair) <= budget]
        if not fitting and budget < rows * columns:
            least = min(_least(*pair) for pair in shapes)
            raise ValueError(
                f"max_params={budget} is too small: the smallest of these shapes has {least} values"
            )
        shapes = list(dict.fromkeys([low_rank, *fitting]))
    found = [DimsSuggestion((rows,), (columns,), (1, 1), rows * columns, 0.0)]
    started = time.monotonic()
    for pair in bar(shapes, "shapes", progress):
        if seconds is not None and pair != low_rank and time.monotonic() - started > seconds:
            break
        found.append(_measured(matrix, pair, budget, tolerance, rng))

    def key(one: DimsSuggestion) -> tuple[float, ...]:
        if budget is None:
            return one.n_params, one.error
        return one.n_params > budget, one.error, one.n_params

    ordered = tuple(sorted(found, key=key))
    return DimsSuggestions(ordered, budget, untried=len(shapes) + 1 - len(found))


def _measured(
    matrix: Array, dims: Modes, budget: int | None, eps: float | None, rng: RNG
) -> DimsSuggestion:
    """What a decomposition in these modes achieves; ranks of one where the budget is too small."""
    fits = budget is None or _least(*dims) <= budget
    limits = {"max_params": budget, "eps": eps} if fits else {"ranks": 1}
    mpo = mpo_decompose(matrix, row_dims=dims[0], col_dims=dims[1], rng=rng, **limits)
    return DimsSuggestion(*dims, mpo.ranks, mpo.n_params, mpo.error or 0.0)


def _shapes(shape: tuple[int, int], order: int) -> list[Modes]:
    """Pairs of modes with `order` factors, without repetition."""
    rows, columns = (factorize(width, order) for width in shape)
    pairs = itertools.product((rows, rows[::-1]), (columns, columns[::-1]))
    return list(dict.fromkeys(pairs))


def _least(rows: Sequence[int], columns: Sequence[int]) -> int:
    """Values of the shape at ranks of one."""
    count = ChainCount(paired_modes(rows, columns))
    return count.values((1,) * (len(rows) - 1))
