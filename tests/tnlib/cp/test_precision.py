"""CP in single and half precision: true errors, and terms that do not outgrow the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from tests.arrays import numpy_of, relative
from tnlib import CP, cp_als, cp_als_batch
from tnlib.cp import mttkrp

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
METHODS, STARTS = ("als", "lm", "auto"), ("hosvd", "random", "given")
WAVES = np.sin(sum(np.ogrid[:8, :9, :10]))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(params=["whole", "tiles"])
def converted(request, monkeypatch):
    """Data converted to double at once, as small ones are, or tile by tile where that is needed."""
    if request.param == "tiles":
        monkeypatch.setattr(mttkrp, "_SMALL", 0)
        monkeypatch.setattr(mttkrp, "_TILE", 64)


def true_error(cp, array):
    """Relative error in double of the arrays that were returned."""
    weights, factors = cp
    wide = CP(double(weights), tuple(double(factor) for factor in factors))
    return relative(wide.to_dense(), double(array))


def double(array):
    return numpy_of(array).astype(float)


def assert_true(cp, array, unit=UNIT["float32"]):
    error = true_error(cp, array)
    assert abs(cp.error - error) <= max(0.05 * error, 10 * unit)


def low_rank(seed, excess=8):
    """A random float32 tensor of one or two terms, and a number of terms above that."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 8, size=rng.integers(2, 6))
    terms = int(rng.integers(1, 3))
    factors = tuple(rng.standard_normal((size, terms)) for size in shape)
    array = CP(np.ones(terms), factors).to_dense().astype(np.float32)
    return array, terms + int(rng.integers(1, excess + 1))


def start_of(start, array, rank, seed=0):
    if start != "given":
        return start
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal((size, rank)).astype(array.dtype) for size in array.shape]
    return CP(np.ones(rank, array.dtype), tuple(drawn))


@pytest.mark.parametrize("rank", [3, 5, 8, 10])
@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_single_precision_is_as_accurate_as_tensorly(rank, converted):
    array = WAVES.astype(np.float32)
    # Near an exact fit rounding decides whether tensorly takes the root of a negative number.
    with np.errstate(invalid="ignore"):
        weights, factors = parafac(array, rank)
    theirs = true_error(CP(weights, tuple(factors)), array)
    assert np.isfinite(theirs)
    for method, start in itertools.product(METHODS, STARTS):
        cp = cp_als(array, rank, method=method, init=start_of(start, array, rank), compress=False)
        assert_true(cp, array)
        assert cp.error <= max(theirs, 10 * UNIT["float32"])
    for cp in cp_als_batch([array, array], rank):
        assert_true(cp, array)
        assert cp.error <= max(theirs, 10 * UNIT["float32"])


@given(SEEDS, st.sampled_from(METHODS), st.sampled_from(STARTS))
@settings(max_examples=25)
def test_the_error_above_the_true_rank_is_that_of_the_returned_arrays(seed, method, start):
    array, rank = low_rank(seed)
    init = start_of(start, array, rank, seed)
    assert_true(cp_als(array, rank, method=method, init=init, max_iter=30), array)


@pytest.mark.parametrize("start", STARTS)
def test_too_many_terms_fit_to_rounding_in_single_precision(start):
    far = []
    for seed in range(25):
        array, rank = low_rank(seed)
        cp = cp_als(array, rank, init=start_of(start, array, rank, seed))
        assert_true(cp, array)
        far.append(cp.error > 1e-5)
    assert sum(far) <= 2


@pytest.mark.parametrize("start", ["hosvd", "random"])
def test_a_batch_with_too_many_terms_fits_in_single_precision(start, converted):
    rng = np.random.default_rng(1)
    parts = [tuple(rng.standard_normal((size, 2)) for size in (4, 5, 6)) for _ in range(6)]
    batch = np.stack([CP(np.ones(2), part).to_dense() for part in parts]).astype(np.float32)
    for cp, member in zip(cp_als_batch(batch, 7, init=start), batch, strict=True):
        assert_true(cp, member)
        assert cp.error < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_has_the_error_of_its_rounded_terms(dtype, rank, method):
    array = torch.from_numpy(WAVES).to(getattr(torch, dtype))
    for start in ("hosvd", "random"):
        cp = cp_als(array, rank, method=method, init=start)
        assert_true(cp, array, UNIT["float32"])
        assert cp.error <= 4 * UNIT[dtype]


def test_terms_stay_near_the_size_of_the_data():
    for seed in range(8):
        array, rank = low_rank(seed)
        for method in METHODS:
            cp = cp_als(array, rank, method=method)
            assert cp.weights.max() <= 1000 * np.linalg.norm(array)


def test_well_posed_data_are_computed_in_their_own_precision(monkeypatch):
    monkeypatch.setattr(mttkrp, "_SMALL", 0)
    rng = np.random.default_rng(0)
    factors = tuple(rng.standard_normal((size, 3)) for size in (9, 10, 11))
    array = CP(np.ones(3), factors).to_dense() + rng.standard_normal((9, 10, 11))
    cp = cp_als(array.astype(np.float32), 3, method="als")
    assert cp.info.compute_dtype == "float32"
    wide = cp_als(array, 3, method="als")
    assert cp.error == pytest.approx(wide.error, rel=1e-5)
