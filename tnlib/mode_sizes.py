"""Factorising a width into balanced modes.

Which modes a matrix is folded into decides how well a tensor network compresses it. Without
better knowledge the balanced choice is used: among all ways to write n as d ordered factors, the
one with the smallest sum, found exactly over the divisors of n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tnlib.arrays import checks


def factorize(n: int, d: int) -> tuple[int, ...]:
    """Write `n` as a product of `d` ascending factors that are as equal as possible.

    The factors have the least possible sum (for a fixed product, the balanced choice); among
    those, the smallest largest factor. Always succeeds: missing prime factors become ones.

    Parameters
    ----------
    n : int
        Width to factorise, at least 1.
    d : int
        Number of factors, at least 1.

    Returns
    -------
    tuple of int
        `d` factors in ascending order whose product is `n`.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is below 1.

    Examples
    --------
    >>> factorize(768, 3)
    (8, 8, 12)
    >>> factorize(11008, 4)
    (4, 8, 8, 43)
    >>> factorize(97, 3)
    (1, 1, 97)
    """
    n = checks.positive_int("n", n)
    d = checks.positive_int("d", d)
    most = min(d, n.bit_length())  # no number has more prime factors
    return (1,) * (d - most) + _best(n, most, 1)


def quantized_dims(*widths: int) -> tuple[tuple[int, ...], ...]:
    """Write every width as its prime factors: the modes of a quantised tensor train (QTT).

    Chains over modes of size 2 separate every scale of an index (Khoromskij, Constr. Approx. 34,
    2011). All widths get equally many modes, the shorter lists being filled with ones in front, so
    the rows and columns of a matrix can be paired.

    Parameters
    ----------
    *widths : int
        Widths to factorise, each at least 1.

    Returns
    -------
    tuple of tuple of int
        One tuple of modes for each width, ascending and of equal length.

    Raises
    ------
    TypeError
        If a width is not an integer.
    ValueError
        If a width is below 1.

    Examples
    --------
    >>> quantized_dims(8, 12)
    ((2, 2, 2), (2, 2, 3))
    >>> quantized_dims(64, 6)
    ((2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 2, 3))
    """
    factors = [_primes(checks.positive_int("every width", width)) for width in widths]
    order = max((len(found) for found in factors), default=1) or 1
    return tuple((1,) * (order - len(found)) + found for found in factors)


def default_order(width: int) -> int:
    """Number of modes for a matrix whose smaller side is `width`: 2, 3 from 256, 4 from 4096."""
    return 2 + (width >= 256) + (width >= 4096)


def matrix_modes(
    shape: tuple[int, int], row_dims: Sequence[int] | None, col_dims: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column modes, checked, and factorised where they are not given."""
    rows = None if row_dims is None else checks.dims("row_dims", row_dims, shape[0])
    columns = None if col_dims is None else checks.dims("col_dims", col_dims, shape[1])
    order = len(rows or columns or ()) or default_order(min(shape))
    rows = rows or factorize(shape[0], order)
    columns = columns or factorize(shape[1], order)
    checks.pairs(rows, columns)
    return rows, columns


def paired_axes(order: int) -> tuple[int, ...]:
    """Axes (i_1, ..., i_d, j_1, ..., j_d) in the order (i_1, j_1, ..., i_d, j_d)."""
    return tuple(axis for k in range(order) for axis in (k, order + k))


def paired_modes(rows: Sequence[int], columns: Sequence[int]) -> tuple[int, ...]:
    """Mode sizes i_k * j_k of the train that an operator is."""
    return tuple(i * j for i, j in zip(rows, columns, strict=True))


@lru_cache(maxsize=4096)
def _best(n: int, d: int, at_least: int) -> tuple[int, ...]:
    if d == 1:
        return (n,)
    ones = (1,) * (d - 1) + (n,)
    candidates = [ones] if at_least == 1 else []
    for first in _divisors(n):
        if first < at_least or first**d > n:
            continue
        rest = _best(n // first, d - 1, first)
        if rest:
            candidates.append((first, *rest))
    return min(candidates, key=lambda factors: (sum(factors), factors[-1]), default=())


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return tuple(small + [n // k for k in reversed(small) if k * k != n])


def _primes(n: int) -> tuple[int, ...]:
    """Prime factors of `n`, ascending."""
    smallest = next((k for k in range(2, math.isqrt(n) + 1) if n % k == 0), n)
    return () if n == 1 else (smallest, *_primes(n // smallest))
