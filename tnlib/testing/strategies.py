"""Strategies that draw a seed and a few choices, not raw floats.

Among the choices are sizes of 1, flat and steep spectra, large and small scales, and zeros. So
examples shrink to small shapes and stay numerically meaningful. All numbers are float64; arrays
are NumPy's by default.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as npst
except ImportError as error:
    raise ImportError("tnlib.testing needs hypothesis: pip install tnlib[testing]") from error

from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import Library
from tnlib.cp.format import CP
from tnlib.testing import _build
from tnlib.trains.mpo import MPO
from tnlib.trains.tt import TT
from tnlib.tucker.format import Tucker

_SEEDS = st.integers(0, 2**32 - 1)
_DECAYS = st.sampled_from((0.0, 0.5, 2.0, 6.0))
_SCALES = st.sampled_from((1.0, 1.0, 1.0, 0.0, 1e12, 1e-12))


def tensors(
    *, min_order: int = 2, max_order: int = 5, max_size: int = 5, library: Library = "numpy"
) -> st.SearchStrategy[Array]:
    """Draw arrays whose unfoldings have flat spectra, or spectra that decay.

    Parameters
    ----------
    min_order, max_order : int, optional
        Least and largest number of axes.
    max_size : int, optional
        Largest size of an axis; the least is 1.
    library : {"numpy", "torch"}, optional
        What to draw.

    Returns
    -------
    strategy of arrays, shape (n_1, ..., n_d), float64

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from tnlib import tt_svd
    >>> @settings(max_examples=10, database=None)
    ... @given(tensors(library="torch"))
    ... def test_eps_is_met(array):
    ...     assert tt_svd(array, eps=0.1).error <= 0.1
    >>> test_eps_is_met()
    """
    shapes = st.lists(st.integers(1, max_size), min_size=min_order, max_size=max_order)
    return st.builds(
        _build.tensor, st.just(_build.converter(library)), shapes, _SEEDS, _DECAYS, _SCALES
    )


def matrices(
    *, max_order: int = 4, max_size: int = 4, library: Library = "numpy"
) -> st.SearchStrategy[tuple[Array, tuple[int, ...], tuple[int, ...]]]:
    """Draw matrices together with modes of their rows and columns.

    Parameters
    ----------
    max_order : int, optional
        Largest number of row modes, and of column modes, of which there are as many.
    max_size : int, optional
        Largest mode.
    library : {"numpy", "torch"}, optional
        What to draw.

    Returns
    -------
    strategy of (array, row_dims, col_dims)
        The array has shape (prod row_dims, prod col_dims) and is float64.

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10, database=None)
    ... @given(matrices(max_order=2))
    ... def test_the_modes_are_those_of_the_matrix(drawn):
    ...     matrix, rows, columns = drawn
    ...     assert matrix.shape == (np.prod(rows), np.prod(columns))
    >>> test_the_modes_are_those_of_the_matrix()
    """
    modes = st.lists(_pairs(max_size, max_size), min_size=1, max_size=max_order)
    return st.builds(
        _build.matrix, st.just(_build.converter(library)), modes, _SEEDS, _DECAYS, _SCALES
    )


def trains(
    *, max_order: int = 5, max_size: int = 5, max_rank: int = 4, library: Library = "numpy"
) -> st.SearchStrategy[TT[Any]]:
    """Draw tensor trains whose ranks may be larger than their arrays need.

    Parameters
    ----------
    max_order, max_size, max_rank : int, optional
        Largest number of cores, mode and bond.
    library : {"numpy", "torch"}, optional
        What the cores are.

    Returns
    -------
    strategy of TT

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10, database=None)
    ... @given(trains())
    ... def test_norm_is_that_of_the_array(train):
    ...     dense = np.linalg.norm(train.to_dense())
    ...     assert abs(train.norm() - dense) <= 1e-10 * dense
    >>> test_norm_is_that_of_the_array()
    """
    modes = st.lists(st.tuples(st.integers(1, max_size)), min_size=1, max_size=max_order)
    return _chains(modes, max_order, max_rank, library).map(TT)


def operators(
    *, max_order: int = 4, max_size: int = 4, max_rank: int = 4, library: Library = "numpy"
) -> st.SearchStrategy[MPO[Any]]:
    """Draw matrix product operators whose ranks may be larger than their matrices need.

    Parameters
    ----------
    max_order, max_size, max_rank : int, optional
        Largest number of cores, mode and bond.
    library : {"numpy", "torch"}, optional
        What the cores are.

    Returns
    -------
    strategy of MPO

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10, database=None)
    ... @given(operators())
    ... def test_transposing_turns_the_shape(operator):
    ...     assert operator.T.shape == operator.shape[::-1]
    >>> test_transposing_turns_the_shape()
    """
    modes = st.lists(_pairs(max_size, max_size), min_size=1, max_size=max_order)
    return _chains(modes, max_order, max_rank, library).map(MPO)


def tuckers(
    *, max_order: int = 4, max_size: int = 5, max_rank: int = 4, library: Library = "numpy"
) -> st.SearchStrategy[Tucker[Any]]:
    """Draw Tucker decompositions whose ranks may be larger than their modes.

    Parameters
    ----------
    max_order, max_size, max_rank : int, optional
        Largest number of factors, mode and multilinear rank.
    library : {"numpy", "torch"}, optional
        What core and factors are.

    Returns
    -------
    strategy of Tucker

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10, database=None)
    ... @given(tuckers())
    ... def test_there_is_a_factor_for_each_axis(tucker):
    ...     assert tucker.to_dense().ndim == len(tucker.factors)
    >>> test_there_is_a_factor_for_each_axis()
    """
    modes = st.lists(_pairs(max_size, max_rank), min_size=1, max_size=max_order)
    return st.builds(
        _build.tucker, st.just(_build.converter(library)), modes, _SEEDS, _DECAYS, _SCALES
    )


def cps(
    *, max_order: int = 4, max_size: int = 5, max_rank: int = 6, library: Library = "numpy"
) -> st.SearchStrategy[CP[Any]]:
    """Draw CP decompositions with weights of both signs.

    Parameters
    ----------
    max_order, max_size, max_rank : int, optional
        Largest number of factors, mode and number of terms.
    library : {"numpy", "torch"}, optional
        What weights and factors are.

    Returns
    -------
    strategy of CP

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10, database=None)
    ... @given(cps(max_rank=3))
    ... def test_rank_is_the_number_of_weights(cp):
    ...     assert cp.rank == len(cp.weights) <= 3
    >>> test_rank_is_the_number_of_weights()
    """
    shapes = st.lists(st.integers(1, max_size), min_size=1, max_size=max_order)
    ranks = st.integers(1, max_rank)
    return st.builds(
        _build.cp, st.just(_build.converter(library)), shapes, ranks, _SEEDS, _DECAYS, _SCALES
    )


def adversarial_tensors(
    *, max_order: int = 4, max_size: int = 4, library: Library = "numpy"
) -> st.SearchStrategy[Array]:
    """Draw float32 and float64 arrays of raw floats: nan, inf, subnormal and huge ones too.

    Parameters
    ----------
    max_order, max_size : int, optional
        Largest number of axes, and size of one.
    library : {"numpy", "torch"}, optional
        What to draw.

    Returns
    -------
    strategy of arrays, shape (n_1, ..., n_d)

    Raises
    ------
    ValueError
        If there is no such library.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from tnlib import tt_svd
    >>> @settings(max_examples=10, database=None)
    ... @given(adversarial_tensors())
    ... def test_the_error_is_finite_or_the_array_is_refused(array):
    ...     try:
    ...         assert np.isfinite(tt_svd(array, 2).error)
    ...     except ValueError:
    ...         assert not np.isfinite(array).all()
    >>> test_the_error_is_finite_or_the_array_is_refused()
    """
    shapes = npst.array_shapes(min_dims=1, max_dims=max_order, max_side=max_size)
    dtypes: Any = st.sampled_from((np.dtype(np.float32), np.dtype(np.float64)))
    return npst.arrays(dtypes, shapes).map(_build.converter(library))


def _pairs(first: int, second: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, first), st.integers(1, second))


def _chains(
    modes: st.SearchStrategy[list[Any]], max_order: int, max_rank: int, library: str
) -> st.SearchStrategy[tuple[Array, ...]]:
    bonds = st.lists(st.integers(1, max_rank), min_size=max_order, max_size=max_order)
    return st.builds(
        _build.cores, st.just(_build.converter(library)), modes, bonds, _SEEDS, _DECAYS, _SCALES
    )
