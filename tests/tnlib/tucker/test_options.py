"""Tucker decompositions of some modes, with fixed factors, and with missing entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, relative, tensors
from tests.tolerances import assert_close, rounding
from tnlib import Tucker, tucker_hooi, tucker_hosvd
from tnlib.io.files import load, save
from tnlib.testing import mode_tails

LIBRARY = st.sampled_from(sorted(LIBRARIES))
U = rounding("float64", 50)


def low_rank(seed, shape, rank):
    rng = np.random.default_rng(seed)
    factors = tuple(rng.standard_normal((size, rank)) for size in shape)
    return Tucker(rng.standard_normal((rank,) * len(shape)), factors).to_dense()


@given(tensors(), st.integers(1, 4), st.data(), LIBRARY)
@settings(max_examples=40)
def test_some_modes_are_decomposed_and_the_others_left_whole(array, ranks, data, library):
    some = st.lists(st.integers(0, array.ndim - 1), min_size=1, max_size=array.ndim, unique=True)
    modes = data.draw(some)
    given_array = LIBRARIES[library](array)
    for tucker in (
        tucker_hosvd(given_array, ranks, modes=modes),
        tucker_hooi(given_array, ranks, modes=modes),
    ):
        assert tucker.shape == array.shape
        assert tucker.modes == tuple(sorted(modes))
        assert len(tucker.factors) == len(modes)
        for k in range(array.ndim):
            assert tucker.ranks[k] <= ranks if k in modes else tucker.ranks[k] == array.shape[k]
        assert abs(tucker.error - relative(tucker.to_dense(), array)) <= U
        tails = [mode_tails(array, tucker.ranks)[k] for k in modes]
        assert tucker.error >= max(tails) - 2 * U
        assert tucker.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + 2 * U


@given(tensors(min_order=2), st.sampled_from([0.5, 0.1, 1e-6]), LIBRARY)
@settings(max_examples=20)
def test_a_partial_decomposition_meets_its_tolerance(array, eps, library):
    tucker = tucker_hosvd(LIBRARIES[library](array), eps=eps, modes=[-1])
    assert relative(tucker.to_dense(), array) <= eps + U
    assert tucker.modes == (array.ndim - 1,)


def test_one_mode_is_the_truncated_svd_of_its_unfolding():
    array = np.random.default_rng(0).standard_normal((5, 8, 6))
    unfolding = np.moveaxis(array, 1, 0).reshape(8, -1)
    tail = np.linalg.norm(np.linalg.svd(unfolding, compute_uv=False)[3:])
    for decompose in (tucker_hosvd, tucker_hooi):
        tucker = decompose(array, 3, modes=(1,))
        assert tucker.n_params == 5 * 3 * 6 + 8 * 3
        assert_close(tucker.error, tail / np.linalg.norm(array), 200, 1.0)


def test_ranks_are_those_of_the_modes_in_their_order():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    for decompose in (tucker_hosvd, tucker_hooi):
        assert decompose(array, (2, 3), modes=(2, 0)).ranks == (3, 6, 2)


def test_partial_decompositions_are_saved(tmp_path):
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    tucker = tucker_hosvd(array, 2, modes=(1,))
    save(tmp_path / "file", {"x": tucker})
    back = load(tmp_path / "file", library="torch")["x"]
    assert back.modes == (1,)
    np.testing.assert_array_equal(back.to_dense().numpy().shape, array.shape)
    np.testing.assert_array_equal(back.core.numpy(), tucker.core)


@given(tensors(min_order=2), st.integers(1, 4), st.integers(0, 99), LIBRARY, st.data())
@settings(max_examples=40)
def test_fixed_factors_stay_and_the_rest_is_the_best_for_them(array, ranks, seed, library, data):
    rng = np.random.default_rng(seed)
    modes = st.lists(st.integers(0, array.ndim - 1), min_size=1, max_size=array.ndim, unique=True)
    fixed = data.draw(modes)
    factors = tuple(rng.standard_normal((n, min(n, ranks))) for n in array.shape)
    core = np.zeros(tuple(f.shape[1] for f in factors))
    convert = LIBRARIES[library]
    init = Tucker(convert(core), tuple(map(convert, factors)))
    tucker = tucker_hooi(convert(array), ranks, init=init, fixed=fixed, max_iter=5)
    projected = array
    for k in fixed:
        np.testing.assert_array_equal(numpy_of(tucker.factors[k]), factors[k])
        basis = np.linalg.qr(factors[k])[0]
        projected = np.moveaxis(np.tensordot(basis @ basis.T, projected, (1, k)), 0, k)
    least = np.linalg.norm(array - projected) / (np.linalg.norm(array) or 1.0)
    condition = max(np.linalg.cond(factors[k]) for k in fixed)
    allowed = rounding("float64", 200, condition=condition)
    assert tucker.error >= least - allowed
    assert abs(tucker.error - relative(tucker.to_dense(), array)) <= U * condition
    if len(fixed) == array.ndim:
        assert tucker.error <= least + allowed


@pytest.mark.parametrize("size", [3, 5])
def test_a_fixed_factor_may_be_dependent_or_have_nothing_to_do_with_the_data(size):
    array = low_rank(0, (6, 7, 8), 2)
    array[4:] = 0
    factor = np.zeros((6, size))
    factor[5] = 1.0
    rest = (np.ones((7, 2)), np.ones((8, 2)))
    init = Tucker(np.ones((size, 2, 2)), (factor, *rest))
    for method in ("auto", "svd", "gram", "krylov"):
        tucker = tucker_hooi(array, 2, init=init, fixed=(0,), method=method)
        assert tucker.error == 1.0
        np.testing.assert_array_equal(tucker.factors[0], factor)
    zero = tucker_hooi(0 * array, 2, init=init, fixed=(0,))
    np.testing.assert_array_equal(zero.factors[0], factor)
    assert not zero.to_dense().any()


@given(st.integers(0, 999), st.sampled_from([0.4, 0.6, 0.9, 1.0]), LIBRARY)
@settings(max_examples=20)
def test_missing_entries_are_found_and_the_error_is_over_observed_ones(seed, share, library):
    shape = (7, 8, 9)
    rng = np.random.default_rng(seed)
    array = low_rank(seed, shape, 2) + 1e-3 * rng.standard_normal(shape)
    mask = rng.random(shape) < share
    convert = LIBRARIES[library]
    for modes in (None, (0, 2)):
        given_array = convert(np.where(mask, array, np.nan))
        tucker = tucker_hooi(given_array, 2, mask=convert(mask), modes=modes, max_iter=20)
        dense = numpy_of(tucker.to_dense())
        observed = np.linalg.norm((dense - array)[mask]) / np.linalg.norm(array[mask])
        assert abs(tucker.error - observed) <= U
        assert np.all(np.diff(tucker.info.trace) <= U)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize(("share", "shape"), [(0.8, (10, 11)), (0.5, (10, 11, 12))])
def test_a_low_rank_array_is_completed(share, shape, dtype):
    array = low_rank(1, shape, 2).astype(dtype)
    if "complex" in dtype:
        array = array * np.exp(1j * np.arange(shape[-1]))
    mask = np.random.default_rng(2).random(shape) < share
    tucker = tucker_hooi(np.where(mask, array, np.inf), 2, mask=mask, max_iter=1000)
    assert tucker.info.converged
    assert relative(tucker.to_dense(), array) <= 1e-4


def test_a_full_mask_changes_nothing():
    array = np.random.default_rng(0).standard_normal((6, 7, 8))
    masked = tucker_hooi(array, 3, mask=np.ones(array.shape, bool), tol=1e-12, max_iter=500)
    assert masked.error == pytest.approx(tucker_hooi(array, 3, tol=1e-12, max_iter=500).error)


def test_missing_entries_and_a_fixed_factor():
    array = low_rank(3, (8, 9, 10), 2)
    mask = np.random.default_rng(0).random(array.shape) < 0.7
    start = tucker_hosvd(array, 2)
    tucker = tucker_hooi(
        np.where(mask, array, np.nan), 2, mask=mask, init=start, fixed=(1,), max_iter=300
    )
    np.testing.assert_array_equal(tucker.factors[1], start.factors[1])
    assert relative(tucker.to_dense(), array) <= 1e-5


def test_observed_zeros_are_the_zero_array():
    mask = np.eye(3, dtype=bool)
    tucker = tucker_hooi(np.where(mask, 0.0, np.nan), 1, mask=mask)
    assert (tucker.error, tucker.ranks) == (0.0, (1, 1))


CUBE = np.ones((2, 3, 4))
ONE = tucker_hosvd(CUBE, 1)
MASK = np.ones(CUBE.shape, bool)
BAD = [
    (lambda: tucker_hosvd(CUBE, 1, modes=(0, 0)), ValueError, "modes must be different"),
    (lambda: tucker_hosvd(CUBE, 1, modes=(0, -3)), ValueError, "modes must be different"),
    (lambda: tucker_hosvd(CUBE, 1, modes=()), ValueError, "modes must not be empty"),
    (lambda: tucker_hosvd(CUBE, 1, modes=1), TypeError, "sequence of ints, got 1"),
    (lambda: tucker_hosvd(CUBE, 1, modes=(3,)), (ValueError, IndexError), "from -3 to 2"),
    (lambda: tucker_hosvd(CUBE, (1, 1, 1), modes=(0, 1)), ValueError, "one int or 2 ints"),
    (lambda: tucker_hosvd(CUBE, max_params=9, modes=(0,)), ValueError, "ranks of all modes"),
    (lambda: tucker_hooi(CUBE, 1, fixed=(0,)), ValueError, "init, which must be a Tucker"),
    (lambda: tucker_hooi(CUBE, 1, init=ONE, fixed=(0,), modes=(1,)), ValueError, "without a f"),
    (lambda: tucker_hooi(CUBE, max_params=20, init=ONE, fixed=(0,)), ValueError, "with fixed="),
    (
        lambda: tucker_hooi(CUBE, 1, init=tucker_hosvd(CUBE + 0j, 1)),
        TypeError,
        "init is complex",
    ),
    (lambda: tucker_hooi(CUBE, 1, mask=1 * MASK), TypeError, "mask must be boolean"),
    (lambda: tucker_hooi(CUBE, 1, mask=MASK[0]), ValueError, r"mask has shape \(3, 4\)"),
    (lambda: tucker_hooi(CUBE, 1, mask=~MASK), ValueError, "no entry is observed"),
    (lambda: tucker_hooi(CUBE, 1, mask=torch.from_numpy(MASK)), TypeError, "one library"),
    (lambda: tucker_hooi(CUBE * np.nan, 1, mask=MASK), ValueError, "nan or inf"),
    (lambda: Tucker(CUBE, (np.eye(2), np.eye(3))), ValueError, "as many factors.*got 2"),
    (lambda: Tucker(CUBE, (np.eye(2),), modes=(1,)), ValueError, "axis 1 of the core 3"),
    (lambda: Tucker(CUBE, (np.eye(3), np.eye(2)), modes=(1, 0)), ValueError, "must ascend"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_core_without_factors_is_the_array():
    tucker = Tucker(CUBE, ())
    assert (tucker.shape, tucker.n_params, tucker.compression) == ((2, 3, 4), 24, 1.0)
    np.testing.assert_array_equal(tucker.to_dense(), CUBE)
