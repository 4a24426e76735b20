"""The strategies reach what they promise, and the oracles agree with their definitions."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import tnlib.testing
from tests.tolerances import assert_close
from tnlib import CP, MPO, TT, Tucker, testing
from tnlib.testing import strategies

FORMATS = {
    testing.trains: TT,
    testing.operators: MPO,
    testing.tuckers: Tucker,
    testing.cps: CP,
}
REACH = settings(max_examples=5000, database=None, phases=[Phase.generate])


def find_one(strategy, holds):
    """Draw until something holds; always the same draws, so that finding it is no luck."""
    return find(strategy, holds, settings=REACH, random=Random(0))


def arrays_of(decomposition):
    if isinstance(decomposition, TT | MPO):
        return decomposition.cores
    first, factors = decomposition
    return (first, *factors)


@pytest.mark.parametrize(("strategy", "kind"), FORMATS.items())
@pytest.mark.parametrize(
    ("library", "array_type"), [("numpy", np.ndarray), ("torch", torch.Tensor)]
)
def test_formats_are_drawn_in_float64_and_in_the_library_asked_for(
    strategy, kind, library, array_type
):
    @given(strategy(library=library))
    @settings(max_examples=20)
    def holds(drawn):
        assert type(drawn) is kind
        assert all(isinstance(array, array_type) for array in arrays_of(drawn))
        assert all(str(array.dtype).endswith("float64") for array in arrays_of(drawn))
        assert np.isfinite(np.asarray(drawn.to_dense())).all()

    holds()


@pytest.mark.parametrize("strategy", FORMATS)
def test_zeros_sizes_of_one_and_large_scales_are_reached(strategy):
    find_one(strategy(), lambda drawn: not drawn.to_dense().any())
    find_one(strategy(), lambda drawn: 1 in drawn.shape and drawn.to_dense().any())
    find_one(strategy(), lambda drawn: np.abs(drawn.to_dense()).max() > 1e9)


@pytest.mark.parametrize("strategy", [testing.trains, testing.tuckers])
def test_ranks_beyond_the_size_of_the_array_are_reached(strategy):
    find_one(strategy(), lambda drawn: max(drawn.ranks) > math.prod(drawn.shape))


@given(testing.tensors(min_order=3, max_order=3, max_size=2, library="torch"))
def test_tensors_keep_to_the_limits(array):
    assert isinstance(array, torch.Tensor)
    assert array.dtype == torch.float64
    assert array.ndim == 3
    assert max(array.shape) <= 2


def test_tensors_with_steep_and_with_flat_spectra_are_reached():
    def condition(array):
        values = np.linalg.svd(array.reshape(array.shape[0], -1), compute_uv=False)
        return values[0] / values[-1] if values[-1] else np.nan

    strategy = testing.tensors(min_order=2, max_order=2)
    find_one(strategy, lambda array: min(array.shape) == 5 and condition(array) > 1e6)
    find_one(strategy, lambda array: min(array.shape) == 5 and condition(array) < 1e2)


@given(testing.matrices(max_order=3, max_size=3, library="torch"))
def test_matrices_come_with_their_modes(drawn):
    matrix, rows, columns = drawn
    assert tuple(matrix.shape) == (math.prod(rows), math.prod(columns))
    assert len(rows) == len(columns) <= 3
    assert max(rows + columns) <= 3


@pytest.mark.parametrize(
    "holds",
    [
        lambda array: np.isnan(array).any(),
        lambda array: np.isinf(array).any(),
        lambda array: (np.abs(array) > 1e30).any() and np.isfinite(array).all(),
        lambda array: ((array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)).any(),
        lambda array: array.dtype == np.float32,
    ],
)
def test_adversarial_tensors_reach_every_kind_of_float(holds):
    find_one(testing.adversarial_tensors(), holds)


@given(testing.adversarial_tensors(max_order=2, max_size=3, library="torch"))
def test_adversarial_tensors_keep_to_the_limits(array):
    assert isinstance(array, torch.Tensor)
    assert 1 <= array.ndim <= 2
    assert max(array.shape) <= 3


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 3), st.integers(0, 9))
def test_with_spectrum_has_the_singular_values(rows, columns, decay, seed):
    values = 10.0 ** (-decay * np.arange(min(rows, columns)))
    found = np.linalg.svd(testing.with_spectrum(values, rows, columns, seed), compute_uv=False)
    # Two orthogonal bases, their product and the SVD that checks it.
    assert_close(found, values, operations=4 * rows * columns)


def test_with_spectrum_depends_on_the_seed_alone():
    first, again, other = (testing.with_spectrum([2.0, 1.0], 4, 3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_too_many_singular_values_are_refused():
    with pytest.raises(ValueError, match="a 3 x 2 matrix cannot have 3 singular values"):
        testing.with_spectrum([1.0, 1.0, 1.0], 3, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_relative_error_widens_every_precision(dtype):
    array = torch.tensor([3.0, 4.0], dtype=dtype, requires_grad=True)
    assert testing.relative_error(array * 2, array) == 1.0
    assert testing.relative_error(array, array) == 0.0


def test_relative_error_against_zero_is_the_norm():
    assert testing.relative_error(np.array([3.0, 4.0]), np.zeros(2)) == 5.0
    assert testing.relative_error(np.zeros(2), np.zeros(2)) == 0.0


@given(testing.tensors(max_order=4), st.data())
def test_tails_are_the_errors_of_the_best_matrices(array, data):
    ranks = [data.draw(st.integers(1, 4)) for _ in array.shape]
    norm = np.linalg.norm(array) or 1.0
    # LAPACK's own tests accept an SVD that gives a matrix back within 50 times its longer side, in
    # units of roundoff (LAPACK Working Note 41, on its test ratios).
    longest = max(array.size // min(array.shape), max(array.shape))
    roundoff = 50 * longest * np.finfo(float).eps

    def loss(matrix, rank):
        U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
        return np.linalg.norm(matrix - (U[:, :rank] * S[:rank]) @ Vh[:rank]) / norm

    modes = [
        loss(np.moveaxis(array, k, 0).reshape(n, -1), ranks[k]) for k, n in enumerate(array.shape)
    ]
    np.testing.assert_allclose(testing.mode_tails(array, ranks), modes, atol=roundoff)
    sizes = itertools.accumulate(array.shape[:-1], lambda a, b: a * b)
    splits = [loss(array.reshape(n, -1), ranks[k]) for k, n in enumerate(sizes)]
    tails = testing.unfolding_tails(torch.from_numpy(array), (1, *ranks[:-1], 1))
    np.testing.assert_allclose(tails, splits, atol=roundoff)


def test_a_wrong_number_of_ranks_is_refused():
    with pytest.raises(ValueError, match="longer"):
        testing.mode_tails(np.eye(3), (1, 1, 1))
    with pytest.raises(ValueError, match="longer"):
        testing.unfolding_tails(np.eye(3), (1, 1, 1, 1))


@pytest.mark.parametrize(
    "strategy", [*FORMATS, testing.tensors, testing.matrices, testing.adversarial_tensors]
)
def test_an_unknown_library_is_refused_at_once(strategy):
    with pytest.raises(ValueError, match="numpy or torch, got 'jax'"):
        strategy(library="jax")


def test_without_hypothesis_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    spec = importlib.util.spec_from_file_location("again", strategies.__file__)
    with pytest.raises(ImportError, match=r"pip install tnlib\[testing\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_everything_public_is_exported():
    public = {name for name in vars(strategies) if not name.startswith("_")}
    drawn = {name for name in public if callable(getattr(strategies, name))}
    own = {name for name in drawn if getattr(strategies, name).__module__ == strategies.__name__}
    assert own < set(tnlib.testing.__all__)
    assert sorted(tnlib.testing.__all__) == tnlib.testing.__all__
