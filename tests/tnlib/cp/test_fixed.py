"""CP with fixed factors: they stay as they are, and the others are the best for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import numpy_of, relative
from tnlib import CP, cp_als

METHODS = ("als", "lm", "auto")
SHAPE, RANK = (4, 5, 6), 3
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, shape=SHAPE, rank=RANK):
    rng = np.random.default_rng(seed)
    return CP(rng.standard_normal(rank), tuple(rng.standard_normal((n, rank)) for n in shape))


@given(SEEDS, st.sampled_from(METHODS), st.sets(st.integers(0, 2), min_size=1, max_size=2))
@settings(max_examples=30)
def test_fixed_factors_stay_and_the_error_is_true(seed, method, fixed):
    array = np.random.default_rng(seed).standard_normal(SHAPE)
    init = drawn(seed)
    cp = cp_als(array, RANK, init=init, fixed=sorted(fixed), method=method, max_iter=10)
    for mode in fixed:
        np.testing.assert_array_equal(cp.factors[mode], init.factors[mode])
    assert abs(cp.error - relative(cp.to_dense(), array)) <= 1e-12
    assert np.all(cp.weights >= 0)


@pytest.mark.parametrize("free", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_one_free_mode_is_a_least_squares_problem(free, method):
    array = np.random.default_rng(1).standard_normal(SHAPE)
    init = drawn(2)
    fixed = [mode for mode in range(3) if mode != free]
    cp = cp_als(array, RANK, init=init, fixed=fixed, method=method, tol=1e-12)
    first, second = (init.factors[mode] for mode in fixed)
    matrix = np.einsum("ir,jr->ijr", first, second).reshape(-1, RANK)
    unfolding = np.moveaxis(array, free, -1).reshape(-1, SHAPE[free])
    rest = unfolding - matrix @ np.linalg.lstsq(matrix, unfolding, rcond=None)[0]
    assert cp.error == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(array), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [float, complex])
def test_a_known_factor_leads_to_the_terms(method, dtype, to_library):
    rng = np.random.default_rng(0)
    true = [rng.standard_normal((n, RANK)).astype(dtype) for n in SHAPE]
    if dtype is complex:
        true = [factor + 1j * rng.standard_normal(factor.shape) for factor in true]
    array = CP(np.ones(RANK, dtype), tuple(true)).to_dense()
    factors = (true[0], *(rng.standard_normal(f.shape).astype(dtype) for f in true[1:]))
    init = CP(to_library(np.ones(RANK)), tuple(map(to_library, factors)))
    cp = cp_als(to_library(array), RANK, init=init, fixed=[0], method=method, restarts=1)
    assert cp.error < 1e-6
    np.testing.assert_array_equal(numpy_of(cp.factors[0]), true[0])


@pytest.mark.parametrize("method", METHODS)
def test_columns_of_any_length_and_sign_stay(method):
    array = np.random.default_rng(0).standard_normal(SHAPE)
    init = drawn(1)
    last = init.factors[2] * np.array([1e8, 0.0, -1e-8])
    init = CP(np.array([-1.0, 0.0, 2.0]), (*init.factors[:2], last))
    cp = cp_als(array, RANK, init=init, fixed=[2], method=method)
    np.testing.assert_array_equal(cp.factors[2], last)
    assert abs(cp.error - relative(cp.to_dense(), array)) <= 1e-12
    assert cp.error < 0.95


def test_fixed_factors_with_a_mask_with_half_precision_and_with_another_library():
    init = drawn(3)
    array = CP(init.weights, init.factors).to_dense()
    mask = np.random.default_rng(0).random(SHAPE) < 0.8
    begin = CP(init.weights, (init.factors[0], *drawn(4).factors[1:]))
    cp = cp_als(np.where(mask, array, np.nan), RANK, init=begin, fixed=[-3], mask=mask)
    assert relative(cp.to_dense(), array) < 1e-6
    half = torch.from_numpy(array).half()
    cp = cp_als(half, RANK, init=begin, fixed=[0])
    assert torch.equal(cp.factors[0], torch.from_numpy(begin.factors[0]).half())
    assert cp.error < 1e-2
    tensors = CP(*(f(begin) for f in (lambda c: torch.from_numpy(c.weights), torch_factors)))
    cp = cp_als(array, RANK, init=tensors, fixed=[0])
    np.testing.assert_array_equal(cp.factors[0], begin.factors[0])
    assert not np.shares_memory(cp.factors[0], begin.factors[0])
    assert cp.error < 1e-6


def torch_factors(cp):
    return tuple(torch.from_numpy(factor) for factor in cp.factors)


def test_the_zero_array_keeps_fixed_factors():
    init = drawn(0)
    cp = cp_als(np.zeros(SHAPE), RANK, init=init, fixed=[1])
    np.testing.assert_array_equal(cp.factors[1], init.factors[1])
    assert not cp.to_dense().any()


CUBE, START = np.ones(SHAPE), drawn(0)
NO_MODE = (ValueError, IndexError)
BAD = [
    (lambda: cp_als(CUBE, RANK, fixed=[0]), ValueError, "init, which must be a CP"),
    (lambda: cp_als(CUBE, RANK, init=START, fixed=[3]), NO_MODE, "every entry of fixed"),
    (lambda: cp_als(CUBE, RANK, init=START, fixed=[0, 0]), ValueError, "must be different"),
    (lambda: cp_als(CUBE, RANK, init=START, fixed=[0, 1, 2]), ValueError, "leave one free"),
    (lambda: cp_als(CUBE, RANK, init=START, fixed=1), TypeError, "sequence of ints"),
    (lambda: cp_als(CUBE, RANK, init=START, fixed=[0], compress=True), ValueError, "would lose"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
