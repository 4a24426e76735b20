"""Rounding is TT-SVD of the array a train stands for; refinement never makes it worse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, relative, tensors, unfolding_tails
from tests.tolerances import SUBSPACE, cancellation, rounding
from tnlib import MPO, TT, mpo_decompose, mpo_random, tt_random, tt_round, tt_svd

U = np.finfo(np.float64).eps / 2
RANKS = st.integers(1, 5)
LIBRARY = st.sampled_from(sorted(LIBRARIES))


def train_of(array, library="numpy"):
    """The array as a train of full ranks in no particular gauge."""
    return tt_svd(LIBRARIES[library](array), 10**6).balanced()


@given(tensors(), RANKS, LIBRARY, st.sampled_from(["auto", "svd"]))
def test_the_error_is_true_and_within_the_tails(array, ranks, library, method):
    train = train_of(array, library)
    small = tt_round(train, ranks, method=method)
    dense = numpy_of(train.to_dense())
    tails = unfolding_tails(dense, small.ranks)
    assert max(small.ranks) <= ranks
    assert abs(small.error - relative(small.to_dense(), dense)) <= 50 * U
    assert small.error >= max(tails, default=0.0) - 100 * U
    assert small.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + 100 * U
    assert small.error_kind == "exact"


@given(tensors(), st.sampled_from([0.5, 0.1, 1e-3, 1e-10]), LIBRARY)
def test_eps_is_met(array, eps, library):
    train = train_of(array, library)
    small = tt_round(train, eps=eps)
    assert relative(small.to_dense(), train.to_dense()) <= eps + 50 * U


@given(tensors(), RANKS)
def test_rounding_to_ranks_is_idempotent(array, ranks):
    once = tt_round(train_of(array), ranks, method="svd")
    twice = tt_round(once, ranks, method="svd")
    # A singular value at the level of rounding may be there the first time only.
    assert all(p <= q for p, q in zip(twice.ranks, once.ranks, strict=True))
    assert twice.error <= 50 * U
    scale = np.linalg.norm(array)
    np.testing.assert_allclose(twice.to_dense(), once.to_dense(), atol=1e-13 * scale)


@given(tensors(), RANKS)
def test_rounding_equals_decomposing_the_dense_array(array, ranks):
    train = train_of(array)
    dense = train.to_dense()
    ours, theirs = tt_round(train, ranks, method="svd"), tt_svd(dense, ranks, method="svd")
    assert ours.error == pytest.approx(theirs.error, abs=SUBSPACE)


@given(tensors(), LIBRARY)
def test_a_sum_with_itself_rounds_back_to_its_ranks(array, library):
    train = tt_svd(LIBRARIES[library](array), eps=1e-10)
    doubled = tt_round(train + train, eps=1e-10)
    assert all(p <= q for p, q in zip(doubled.ranks, train.ranks, strict=True))
    scale = np.linalg.norm(array)
    np.testing.assert_allclose(
        numpy_of(doubled.to_dense()), 2 * numpy_of(train.to_dense()), atol=1e-9 * scale
    )


def test_a_train_minus_itself_rounds_to_zero(to_library):
    train = tt_svd(to_library(np.random.default_rng(0).standard_normal((4, 5, 6))), 3)
    nothing = tt_round((train * 0), 3)
    assert nothing.ranks == (1, 1, 1, 1)
    assert nothing.error == 0.0
    nothing = rounding(np.float64, operations=2 * sum(train.ranks), size=train.norm())
    assert float((train - train).norm()) <= cancellation(train) * nothing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_every_precision_tells_the_truth(dtype):
    train = tt_random((6, 7, 8), 6, like=torch.empty(0), dtype=dtype)
    small = tt_round(train, 3)
    assert small.cores[0].dtype == getattr(torch, dtype)
    wide = [TT([core.to(torch.complex128) for core in t.cores]).to_dense() for t in (small, train)]
    exact = float(torch.linalg.norm(wide[0] - wide[1]) / torch.linalg.norm(wide[1]))
    assert small.error == pytest.approx(exact, abs=1e-5)


def test_operators_are_rounded_as_operators():
    operator = mpo_random((4, 4, 4), (3, 5, 2), 12, rng=3)
    small = tt_round(operator, 5)
    assert isinstance(small, MPO)
    assert (small.row_dims, small.col_dims) == (operator.row_dims, operator.col_dims)
    assert small.error == pytest.approx(relative(small.to_matrix(), operator.to_matrix()))


def test_extreme_scales_round_like_moderate_ones():
    train = tt_random((4, 5, 6), 4, rng=0)
    expected = tt_round(train, 2).error
    for scale in (1e200, 1e-200):
        assert tt_round(train * scale, 2).error == pytest.approx(expected, rel=1e-9)


@given(tensors(), RANKS, LIBRARY, st.integers(1, 3))
def test_refinement_never_makes_the_error_worse(array, ranks, library, sweeps):
    data = LIBRARIES[library](array)
    plain, better = tt_svd(data, ranks), tt_svd(data, ranks, refine=sweeps)
    assert better.error <= plain.error + 50 * U
    assert all(p <= q for p, q in zip(better.ranks, plain.ranks, strict=True))
    assert abs(better.error - relative(better.to_dense(), array)) <= 50 * U
    for core in better.cores[:-1]:
        columns = numpy_of(core).reshape(-1, core.shape[2])
        np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-13)


def test_refinement_improves_a_flat_tensor_and_records_it():
    matrix = np.random.default_rng(0).standard_normal((64, 64))
    plain = mpo_decompose(matrix, 6, row_dims=(4, 4, 4), col_dims=(4, 4, 4))
    better = mpo_decompose(matrix, 6, row_dims=(4, 4, 4), col_dims=(4, 4, 4), refine=5)
    assert better.error < plain.error - 1e-3
    assert better.info.n_iter == 5
    assert list(better.info.trace) == sorted(better.info.trace, reverse=True)
    assert better.error == pytest.approx(better.info.trace[-1], abs=1e-12)


BAD = [
    (lambda t: tt_round(np.ones(3), 2), TypeError, "TT or an MPO, got ndarray"),
    (lambda t: tt_round(t), ValueError, "got none"),
    (lambda t: tt_round(t, 0), ValueError, "at least 1"),
    (lambda t: tt_round(t, 0.1), TypeError, "use eps="),
    (lambda t: tt_round(t, eps=1e-17), ValueError, "cannot be met"),
    (lambda t: tt_round(t, 2, method="qr"), ValueError, "method must be one of"),
    (lambda t: tt_round(TT([np.full((1, 2, 1), np.inf)]), 1), ValueError, "nan or inf"),
    (lambda t: tt_svd(np.eye(3), 1, refine=-1), ValueError, "refine must be at least 0, got -1"),
    (lambda t: tt_svd(np.eye(3), 1, refine=1.5), TypeError, "refine must be an integer"),
    (
        lambda t: tt_round(TT([torch.ones(1, 2, 1, requires_grad=True) * 2]), 1),
        ValueError,
        "detach",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call(tt_random((2, 3), 2))


@pytest.mark.parametrize(("dtype", "imbalance"), [("float32", 1e7), ("float64", 1e17)])
def test_columns_that_a_large_partner_makes_count_are_kept(dtype, imbalance):
    rng = np.random.default_rng(0)
    first = rng.standard_normal((1, 6, 2)) * [1, imbalance]
    last = rng.standard_normal((2, 6, 1)) / np.array([1, imbalance])[:, None, None]
    train = TT([first.astype(dtype), last.astype(dtype)])
    dense = TT([core.astype(np.float64) for core in train.cores]).to_dense()
    # A factorisation of a 6 x 2 core is off by as many roundings as it has entries; a gauge takes
    # two of them and two products, and the dense form one more.
    tolerance = rounding(dtype, operations=5 * 12, size=cancellation(train))
    assert float(train.norm()) == pytest.approx(np.linalg.norm(dense), rel=tolerance)
    for same in (train.canonical(0), train.canonical(1), train.balanced(), tt_round(train, 2)):
        assert relative(same.to_dense(), dense) <= tolerance
    assert tt_round(train, eps=1e-3).error <= 1e-3


def test_a_train_that_cancels_keeps_its_promise_or_refuses():
    x, y = (tt_random((6, 7, 8), 3, rng=seed) for seed in (0, 1))
    for dtype, share in (("float32", 1e-5), ("float64", 1e-6)):
        parts = [TT([core.astype(dtype) for core in train.cores]) for train in (x, y)]
        train = (parts[0] + share * parts[1]) - parts[0]
        wide = TT([core.astype(np.float64) for core in train.cores]).to_dense()
        small = tt_round(train, eps=1e-3)
        rebuilt = TT([core.astype(np.float64) for core in small.cores]).to_dense()
        assert relative(rebuilt, wide) <= 1e-3
        assert small.error == pytest.approx(relative(rebuilt, wide), abs=1e-6)
    hopeless = (x + 1e-14 * y) - x
    with pytest.raises(ValueError, match="was not met"):
        tt_round(hopeless, eps=1e-6)
