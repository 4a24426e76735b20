"""Tucker: the bounds of the truncated HOSVD, the descent of HOOI, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, mode_tails, numpy_of, relative, tensors
from tests.tolerances import SUBSPACE
from tnlib import Tucker, tucker_hooi, tucker_hosvd

U = np.finfo(np.float64).eps / 2
RANKS = st.integers(1, 5)
LIBRARY = st.sampled_from(sorted(LIBRARIES))
METHOD = st.sampled_from(["auto", "svd"])


def rank_two(rng, shape):
    """A random array of multilinear ranks 2."""
    factors = tuple(rng.standard_normal((size, 2)) for size in shape)
    return Tucker(rng.standard_normal((2,) * len(shape)), factors).to_dense()


@given(tensors(), RANKS, LIBRARY, METHOD)
def test_the_error_is_true_and_within_the_tails(array, ranks, library, method):
    tucker = tucker_hosvd(LIBRARIES[library](array), ranks, method=method)
    tails = mode_tails(array, tucker.ranks)
    assert max(tucker.ranks) <= ranks
    assert abs(tucker.error - relative(tucker.to_dense(), array)) <= 50 * U
    assert tucker.error >= max(tails) - 100 * U
    assert tucker.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + 100 * U


@given(tensors(), st.sampled_from([0.5, 0.1, 1e-3, 1e-6, 1e-10]), LIBRARY, METHOD)
def test_eps_is_met(array, eps, library, method):
    tucker = tucker_hosvd(LIBRARIES[library](array), eps=eps, method=method)
    assert relative(tucker.to_dense(), array) <= eps + 50 * U


@given(tensors(), RANKS)
def test_discarded_energies_add_up_to_the_squared_error(array, ranks):
    tucker = tucker_hosvd(array, ranks, method="svd")
    assert tucker.error**2 == pytest.approx(math.fsum(tucker.info.discarded), rel=1e-9, abs=1e-14)


@given(tensors(), RANKS, LIBRARY)
def test_factors_are_orthonormal_and_the_core_is_the_projection(array, ranks, library):
    core, factors = tucker_hosvd(LIBRARIES[library](array), ranks)
    factors = [numpy_of(factor) for factor in factors]
    for factor in factors:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-13)
    projected = tensorly.tenalg.multi_mode_dot(array, [factor.T for factor in factors])
    np.testing.assert_allclose(numpy_of(core), projected, atol=1e-12 * np.linalg.norm(array))


@given(tensors(), RANKS, LIBRARY)
def test_tensorly_rebuilds_the_same_array(array, ranks, library):
    tucker = tucker_hosvd(LIBRARIES[library](array), ranks)
    core, factors = numpy_of(tucker.core), [numpy_of(factor) for factor in tucker.factors]
    rebuilt = tensorly.tucker_to_tensor((core, factors))
    scale = np.abs(array).max()
    np.testing.assert_allclose(numpy_of(tucker.to_dense()), rebuilt, atol=1e-12 * scale)


@given(tensors(), RANKS)
def test_both_libraries_find_equally_good_decompositions(array, ranks):
    ours, theirs = tucker_hosvd(array, ranks), tucker_hosvd(torch.from_numpy(array), ranks)
    assert isinstance(theirs.core, torch.Tensor)
    assert theirs.error == pytest.approx(ours.error, rel=SUBSPACE, abs=50 * U)


@given(tensors(), RANKS, LIBRARY, st.sampled_from(["hosvd", "random"]))
def test_no_sweep_of_hooi_raises_the_error(array, ranks, library, init):
    tucker = tucker_hooi(LIBRARIES[library](array), ranks, init=init, max_iter=8, tol=0.0)
    trace = np.array(tucker.info.trace)
    assert np.all(np.diff(trace**2) <= 1e-13)
    assert abs(tucker.error - relative(tucker.to_dense(), array)) <= 50 * U
    if init == "hosvd":
        assert tucker.error <= tucker_hosvd(array, ranks).error + SUBSPACE


def test_hooi_records_its_convergence_and_continues_from_a_result():
    array = np.random.default_rng(0).standard_normal((8, 9, 10))
    tucker = tucker_hooi(array, 3, max_iter=200)
    assert tucker.info.converged
    assert tucker.info.n_iter == len(tucker.info.trace)
    assert tucker.error == pytest.approx(tucker.info.trace[-1], abs=1e-12)
    assert tucker.error < tucker_hosvd(array, 3).error
    further = tucker_hooi(array, 3, init=tucker)
    assert further.info.n_iter == 2
    assert further.error <= tucker.error + SUBSPACE
    short = tucker_hooi(array, 3, max_iter=2, tol=0.0)
    assert (short.info.converged, short.info.reason) == (False, "max_iter was reached")


def test_hooi_is_at_least_as_good_as_tensorlys():
    rng = np.random.default_rng(1)
    array = rank_two(rng, (10, 11, 12)) + 0.3 * rng.standard_normal((10, 11, 12))
    theirs = tensorly.decomposition.tucker(array, [2, 2, 2], n_iter_max=200, tol=1e-10)
    reference = relative(tensorly.tucker_to_tensor(theirs), array)
    assert tucker_hooi(array, 2, max_iter=200, tol=1e-12).error <= reference + 1e-9


@pytest.mark.parametrize("shape", [(40, 3, 5), (3, 40, 5), (3, 5, 40), (600, 2, 3), (7,), (4, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_any_mode_order_and_dtype_gives_a_true_error(shape, dtype):
    rng = np.random.default_rng(0)
    array = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype("complex128")
    array = array.astype(dtype) if dtype == "complex128" else array.real.astype(dtype)
    for tucker in (tucker_hosvd(array, 2), tucker_hooi(array, 2)):
        assert tucker.core.dtype == array.dtype
        exact = relative(tucker.to_dense(), array)
        assert tucker.error == pytest.approx(exact, abs=1e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_tells_what_rounding_costs(dtype):
    wide = torch.from_numpy(rank_two(np.random.default_rng(0), (6, 7, 8)))
    array = wide.to(getattr(torch, dtype))
    tucker = tucker_hosvd(array, 2)
    exact = relative(
        Tucker(tucker.core.double(), tuple(f.double() for f in tucker.factors)).to_dense(), array
    )
    assert tucker.core.dtype == array.dtype
    assert tucker.error == pytest.approx(exact, abs=1e-5)
    assert 1e-5 < tucker.error < 2e-2


def test_the_zero_array_has_ranks_one_and_no_error(to_library):
    for tucker in (tucker_hosvd(to_library(np.zeros((3, 4))), 2), tucker_hooi(np.zeros((3, 4)), 2)):
        assert (tucker.ranks, tucker.error) == ((1, 1), 0.0)
        assert not numpy_of(tucker.to_dense()).any()


def test_extreme_scales_neither_overflow_nor_vanish():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    expected = tucker_hosvd(array, 2).error
    for scale in (1e300, 1e-290):
        assert tucker_hosvd(array * scale, 2).error == pytest.approx(expected, rel=1e-10)
        assert tucker_hooi(array * scale, 2).error <= expected


def test_sizes_and_immutability():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    before = array.copy()
    tucker = tucker_hosvd(array, (5, 6, 7))
    assert tucker.n_params == 5 * 6 * 7 + 25 + 36 + 49
    assert tucker.compression == 210 / tucker.n_params
    tucker.core[...] = 0
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (4, 4, 1), (1,), (3,)])
def test_results_never_share_memory_with_the_input(shape, to_library):
    array = np.random.default_rng(0).standard_normal(shape)
    for tucker in (tucker_hosvd(to_library(array), 4), tucker_hooi(to_library(array), 4)):
        for part in (tucker.core, *tucker.factors):
            assert not np.shares_memory(numpy_of(part), array)


def test_a_start_of_smaller_ranks_is_filled_up():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    assert tucker_hooi(array, 3, init=tucker_hosvd(array, 1)).ranks == (3, 3, 3)


def test_the_dense_form_is_differentiable():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 2), (4, 2), (3, 3), (2, 2)]
    leaves = [torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(lambda core, *f: Tucker(core, f).to_dense(), leaves)


CUBE = np.ones((2, 3, 4))
BAD = [
    (lambda: tucker_hosvd(CUBE), ValueError, "largest ranks.* got none"),
    (lambda: tucker_hosvd(CUBE, (1, 2)), ValueError, "one int or 3 ints, one per decomposed mode"),
    (lambda: tucker_hosvd(CUBE, 0.5), TypeError, "use eps="),
    (lambda: tucker_hosvd(CUBE, (1, 2, 0)), ValueError, "at least 1, got 0"),
    (lambda: tucker_hosvd(CUBE, (1, 2.0, 1)), TypeError, "use eps="),
    (lambda: tucker_hosvd(CUBE, eps=2), ValueError, "strictly between 0 and 1"),
    (lambda: tucker_hosvd(CUBE, 1, method="hooi"), ValueError, "method must be one of"),
    (lambda: tucker_hosvd(np.float64(1.0) * np.ones(()), 1), ValueError, "no axes"),
    (lambda: tucker_hosvd(CUBE * np.nan, 1), ValueError, "nan or inf"),
    (lambda: tucker_hosvd([1.0], 1), TypeError, "got list"),
    (lambda: tucker_hosvd(CUBE.astype(np.float32), eps=1e-9), ValueError, "cannot be met"),
    (lambda: tucker_hooi(CUBE), ValueError, "give ranks=.* or max_params="),
    (lambda: tucker_hooi(CUBE, 1, tol=-1.0), ValueError, "tol must be a finite number"),
    (lambda: tucker_hooi(CUBE, 1, tol="0"), TypeError, "tol must be a real number"),
    (lambda: tucker_hooi(CUBE, 1, max_iter=0), ValueError, "max_iter must be at least 1"),
    (lambda: tucker_hooi(CUBE, 1, init=np.ones(3)), ValueError, "'hosvd', 'random' or a Tucker"),
    (
        lambda: tucker_hooi(np.ones(2), 1, init=Tucker(np.ones(1), (np.full((2, 1), np.nan),))),
        ValueError,
        "init contains nan",
    ),
    (lambda: tucker_hooi(CUBE, 1, init="svd"), ValueError, "'hosvd', 'random' or a Tucker"),
    (lambda: tucker_hooi(CUBE, 1, init=tucker_hosvd(CUBE.T, 1)), ValueError, "expected"),
    (lambda: Tucker(CUBE, (np.ones((4, 2)),) * 2), ValueError, "3 axes needs as many factors"),
    (lambda: Tucker(np.ones(2), (np.ones((4, 3)),)), ValueError, "3 columns and axis 0 .* 2"),
    (lambda: Tucker(np.ones(2), (torch.ones(4, 2),)), TypeError, "one library"),
    (lambda: Tucker(np.ones(2), (np.ones((4, 2), np.float32),)), TypeError, "one dtype"),
    (lambda: Tucker(np.ones(2), np.ones((4, 2))), TypeError, "sequence of matrices"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
