"""Which modes compress a matrix best: a few shapes, each decomposed and measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from tnlib import _checks, _operands
from tnlib._array import RNG, Array
from tnlib.choice.counts import ChainCount
from tnlib.mpo import mpo_decompose
from tnlib.shapes import factorize, paired_modes

# Without a budget or a tolerance, values are this share of the matrix.
_SHARE = 0.1


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
    """

    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    ranks: tuple[int, ...]
    n_params: int
    error: float


def suggest_dims(
    W: Array,
    *,
    max_params: int | None = None,
    eps: float | None = None,
    orders: Sequence[int] = (2, 3, 4),
    progress: bool = False,
    rng: RNG = None,
) -> tuple[DimsSuggestion, ...]:
    """Try mode shapes for an MPO of a matrix, and rank them by what they achieve.

    For every order the balanced factors of both sides are tried, ascending and descending, which
    decides which parts of rows and columns are paired.

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
    progress : bool, optional
        Whether to show a progress bar.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel.

    Returns
    -------
    tuple of DimsSuggestion
        The best first.

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
    matrix = _operands.tensor("W", W)
    if matrix.ndim != 2:
        raise ValueError(f"W must be a matrix, got shape {tuple(matrix.shape)}")
    if max_params is not None and eps is not None:
        raise ValueError("give max_params= or eps=, by which the shapes are compared, not both")
    budget = None if max_params is None else _checks.positive_int("max_params", max_params)
    orders = _checks.sizes("orders", orders)
    shapes = [pair for order in orders for pair in _shapes(tuple(matrix.shape), order)]
    if eps is None and budget is None:
        tenth = int(_SHARE * matrix.shape[0] * matrix.shape[1])
        budget = max(tenth, min(_least(*pair) for pair in shapes))
    if budget is not None:
        fitting = [pair for pair in shapes if _least(*pair) <= budget]
        if not fitting:
            least = min(_least(*pair) for pair in shapes)
            raise ValueError(
                f"max_params={budget} is too small: the smallest of these shapes has {least} values"
            )
        shapes = fitting
    found = []
    for rows, columns in tqdm(shapes, desc="shapes", disable=not progress):
        mpo = mpo_decompose(
            matrix, row_dims=rows, col_dims=columns, max_params=budget, eps=eps, rng=rng
        )
        found.append(DimsSuggestion(rows, columns, mpo.ranks, mpo.n_params, mpo.error or 0.0))
    if budget is None:
        return tuple(sorted(found, key=lambda one: (one.n_params, one.error)))
    return tuple(sorted(found, key=lambda one: (one.error, one.n_params)))


def _shapes(shape: tuple[int, int], order: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of modes with `order` factors, without repetition."""
    rows, columns = (factorize(width, order) for width in shape)
    pairs = itertools.product((rows, rows[::-1]), (columns, columns[::-1]))
    return list(dict.fromkeys(pairs))


def _least(rows: Sequence[int], columns: Sequence[int]) -> int:
    """Values of the shape at ranks of one."""
    count = ChainCount(paired_modes(rows, columns))
    return count.values((1,) * (len(rows) - 1))
