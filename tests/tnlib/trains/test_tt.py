"""Tensor trains: the bounds of TT-SVD, what a train tells about itself, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import (
    LIBRARIES,
    numpy_of,
    relative,
    tensors,
    unfolding_tails,
    with_spectrum,
)
from tests.tolerances import SUBSPACE, assert_close, cancellation
from tnlib import TT, tt_svd

U = np.finfo(np.float64).eps / 2
RANKS = st.integers(1, 6)
LIBRARY = st.sampled_from(sorted(LIBRARIES))
METHOD = st.sampled_from(["auto", "svd"])


@given(tensors(), RANKS, LIBRARY, METHOD)
def test_reported_error_is_the_true_error(array, ranks, library, method):
    train = tt_svd(LIBRARIES[library](array), ranks, method=method)
    assert abs(train.error - relative(train.to_dense(), array)) <= 50 * U
    assert train.error_kind == "exact"


@given(tensors(), RANKS, LIBRARY, METHOD)
def test_error_lies_between_the_largest_tail_and_the_root_of_their_sum(
    array, ranks, library, method
):
    train = tt_svd(LIBRARIES[library](array), ranks, method=method)
    tails = unfolding_tails(array, train.ranks)
    assert train.error >= max(tails) - 100 * U
    assert train.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + 100 * U


@given(tensors(), st.sampled_from([0.5, 0.1, 1e-3, 1e-6, 1e-10]), LIBRARY, METHOD)
def test_eps_is_met(array, eps, library, method):
    train = tt_svd(LIBRARIES[library](array), eps=eps, method=method)
    assert relative(train.to_dense(), array) <= eps + 50 * U


@given(tensors(), st.sampled_from([0.3, 1e-2]), RANKS)
def test_with_ranks_and_eps_neither_is_exceeded_or_the_ranks_bind(array, eps, ranks):
    train = tt_svd(array, ranks, eps=eps)
    assert max(train.ranks) <= ranks
    assert train.error <= eps or ranks in train.ranks


@given(tensors(), RANKS, LIBRARY)
def test_every_core_but_the_last_has_orthonormal_columns(array, ranks, library):
    train = tt_svd(LIBRARIES[library](array), ranks)
    assert train.center == len(train.cores) - 1
    for core in train.cores[:-1]:
        columns = numpy_of(core).reshape(-1, core.shape[2])
        np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-13)


@given(tensors(), RANKS)
def test_discarded_energies_add_up_to_the_squared_error(array, ranks):
    train = tt_svd(array, ranks, method="svd")
    assert train.error**2 == pytest.approx(math.fsum(train.info.discarded), rel=1e-9, abs=1e-14)


@given(tensors(), RANKS)
def test_both_libraries_find_equally_good_trains(array, ranks):
    ours, theirs = tt_svd(array, ranks), tt_svd(torch.from_numpy(array), ranks)
    assert all(isinstance(core, torch.Tensor) for core in theirs.cores)
    assert theirs.error == pytest.approx(ours.error, rel=SUBSPACE, abs=50 * U)


@given(tensors(), RANKS)
def test_tensorly_rebuilds_the_same_array(array, ranks):
    train = tt_svd(array, ranks)
    rebuilt = tensorly.tt_to_tensor(list(train.cores))
    size = cancellation(train) * np.linalg.norm(array)
    assert_close(train.to_dense(), rebuilt, operations=sum(train.ranks), size=size)


@given(tensors(max_order=4), RANKS)
def test_error_is_at_most_tensorly_svd(array, ranks):
    shape_bound = [
        min(ranks, math.prod(array.shape[:k]), math.prod(array.shape[k:]))
        for k in range(1, array.ndim)
    ]
    theirs = tensorly.decomposition.tensor_train(array, rank=[1, *shape_bound, 1])
    reference = relative(tensorly.tt_to_tensor(theirs), array) if array.any() else 0.0
    assert tt_svd(array, ranks).error <= reference + SUBSPACE


@given(tensors(), RANKS, LIBRARY)
def test_balanced_gauge_keeps_the_array_and_evens_the_cores(array, ranks, library):
    train = tt_svd(LIBRARIES[library](array), ranks)
    even = train.balanced()
    assert (even.error, even.error_kind) == (train.error, "inherited")
    scale = np.linalg.norm(array)
    np.testing.assert_allclose(
        numpy_of(even.to_dense()), numpy_of(train.to_dense()), atol=1e-6 * scale
    )
    norms = [float(np.linalg.norm(numpy_of(core))) for core in even.cores]
    if scale and len(norms) == 2:
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@given(tensors(), st.sampled_from([2.0**40, 2.0**-40]), RANKS)
def test_scaling_the_array_scales_only_the_last_core(array, factor, ranks):
    plain, scaled = tt_svd(array, ranks), tt_svd(array * factor, ranks)
    assert scaled.error == pytest.approx(plain.error, rel=SUBSPACE, abs=50 * U)
    norms = [np.linalg.norm(train.cores[-1]) for train in (plain, scaled)]
    assert norms[1] == pytest.approx(factor * norms[0], rel=SUBSPACE)


def test_the_zero_array_has_rank_one_and_no_error(to_library):
    train = tt_svd(to_library(np.zeros((3, 4, 5))), 7)
    assert train.ranks == (1, 1, 1, 1)
    assert train.error == 0.0
    assert not numpy_of(train.to_dense()).any()


def test_ranks_are_maxima_and_stop_at_the_true_rank(to_library):
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal(shape) for shape in [(1, 6, 2), (2, 7, 3), (3, 8, 2), (2, 9, 1)]]
    array = numpy_of(TT(cores).to_dense())
    train = tt_svd(to_library(array), (5, 10, 5), method="svd")
    assert train.ranks == (1, 2, 3, 2, 1)
    assert train.error < 1e-14


def test_vectors_are_trains_of_one_core(to_library):
    train = tt_svd(to_library(np.arange(5.0)), 3)
    assert train.shape == (5,)
    assert train.ranks == (1, 1)
    assert train.error == 0.0


def test_sizes_of_a_train():
    train = tt_svd(np.random.default_rng(0).standard_normal((4, 5, 6)), (2, 3))
    assert train.n_params == 4 * 2 + 2 * 5 * 3 + 3 * 6
    assert train.compression == 120 / train.n_params


def test_ranks_that_do_not_bind_leave_eps_guaranteed():
    matrix = with_spectrum(10.0 ** (-np.arange(300) / 4), 300, 300)
    train = tt_svd(matrix, 200, eps=1e-12)
    assert train.error <= 1e-12
    assert train.ranks[1] < 200
    with pytest.raises(ValueError, match=r"eps=1e-12 was not met: .* found by gram"):
        tt_svd(matrix, 200, eps=1e-12, method="gram")


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">c16", ">i4"])
def test_byte_order_does_not_matter(dtype):
    native = np.arange(1, 25).reshape(4, 6).astype(np.dtype(dtype).newbyteorder("="))
    if native.dtype.kind == "c":
        native = native * 1j
    expected = tt_svd(native, 1)
    swapped = tt_svd(native.astype(dtype), 1)
    assert swapped.error == expected.error
    np.testing.assert_array_equal(swapped.to_dense(), expected.to_dense())


def test_a_zero_dimensional_rank_is_a_number():
    assert tt_svd(np.eye(4), np.array(2)).ranks == (1, 2, 1)


def test_input_is_not_modified_and_cores_own_their_memory(to_library):
    array = to_library(np.random.default_rng(0).standard_normal((4, 4, 4)))
    before = numpy_of(array).copy()
    train = tt_svd(array, 64)
    for core in train.cores:
        core *= 2
    np.testing.assert_array_equal(numpy_of(array), before)


BAD_CALLS = [
    ([[1.0]], {"ranks": 1}, TypeError, "got list"),
    (np.array("text"), {"ranks": 1}, TypeError, "must be numeric"),
    (np.float64(3.0) * np.ones(()), {"ranks": 1}, ValueError, "no axes"),
    (np.ones((2, 0, 3)), {"ranks": 1}, ValueError, r"empty: its shape is \(2, 0, 3\)"),
    (np.array([[1.0, np.nan]]), {"ranks": 1}, ValueError, "nan or inf"),
    (np.array([[1.0, -np.inf]]), {"eps": 0.1}, ValueError, "nan or inf"),
    (torch.tensor([[1.0, float("nan")]]), {"ranks": 1}, ValueError, "nan or inf"),
    (np.ones((2, 2)), {}, ValueError, "got none"),
    (np.ones((2, 2)), {"ranks": 0}, ValueError, "at least 1, got 0"),
    (np.ones((2, 2)), {"ranks": -3}, ValueError, "at least 1, got -3"),
    (np.ones((2, 2)), {"ranks": 0.5}, TypeError, "use eps="),
    (np.ones((2, 2, 2)), {"ranks": (2, 2.0)}, TypeError, "use eps="),
    (np.ones((2, 2)), {"ranks": True}, TypeError, "bool"),
    (np.ones((2, 2)), {"ranks": "2"}, TypeError, "must be an integer"),
    (np.ones((2, 2, 2)), {"ranks": (2, 2, 2)}, ValueError, "2 ints for 3 cores"),
    (np.ones((2, 2, 2)), {"ranks": (2, 2, 2, 2)}, ValueError, "2 ints for 3 cores"),
    (np.ones((2, 2)), {"eps": 0}, ValueError, "strictly between 0 and 1"),
    (np.ones((2, 2)), {"eps": 1.5}, ValueError, "strictly between 0 and 1"),
    (np.ones((2, 2)), {"eps": float("nan")}, ValueError, "strictly between 0 and 1"),
    (np.ones((2, 2)), {"eps": "0.1"}, TypeError, "real number"),
    (np.ones((2, 2)), {"ranks": 1, "method": "magic"}, ValueError, "auto, svd, gram, krylov"),
    (np.ones((2, 2)), {"ranks": 1, "rng": "seed"}, TypeError, "rng must be"),
    (np.ones((2, 2)), {"ranks": 1, "rng": -1}, TypeError, "rng must be"),
    (np.ones((2, 2)), {"ranks": 1, "rng": True}, TypeError, "rng must be"),
    (np.ones((2, 2), np.longdouble), {"ranks": 1}, TypeError, "use float64"),
    (np.ma.masked_equal([[1.0, 2.0]], 2), {"ranks": 1}, TypeError, "masked array"),
    (np.ones((2, 2)), {"ranks": 1, "dtype": "int32"}, TypeError, "dtype must be one of"),
    (np.ones((2, 2)), {"ranks": 1, "dtype": "bfloat16"}, TypeError, "got 'bfloat16'"),
    (np.ones((2, 2)) * 1j, {"ranks": 1, "dtype": "float64"}, TypeError, "complex data"),
    (np.eye(2, dtype=np.float32), {"eps": 1e-9}, ValueError, "cannot be met"),
    (torch.eye(2, dtype=torch.bfloat16), {"eps": 1e-3}, ValueError, "wider dtype="),
    (torch.empty(2, 2, device="meta"), {"ranks": 1}, ValueError, "meta device"),
    (torch.eye(2).to_sparse(), {"ranks": 1}, TypeError, "to_dense"),
]


@pytest.mark.parametrize(("array", "arguments", "error", "message"), BAD_CALLS)
def test_bad_calls_say_what_is_wrong(array, arguments, error, message):
    with pytest.raises(error, match=message):
        tt_svd(array, **arguments)


BAD_CORES = [
    ([], ValueError, "must not be empty"),
    (np.ones((1, 2, 1)), TypeError, "sequence of arrays"),
    ([np.ones((1, 2))], ValueError, r"\(r, n, r\)"),
    ([np.ones((1, 2, 3)), np.ones((2, 2, 1))], ValueError, "do not share a bond"),
    ([np.ones((2, 2, 1))], ValueError, "outer bonds"),
    ([np.ones((1, 0, 1))], ValueError, "empty"),
    ([np.ones((1, 2, 2)), torch.ones((2, 2, 1))], TypeError, "one library, got numpy, torch"),
    ([np.ones((1, 2, 2)), np.ones((2, 2, 1), np.float32)], TypeError, "one dtype"),
]


@pytest.mark.parametrize(("cores", "error", "message"), BAD_CORES)
def test_bad_cores_say_what_is_wrong(cores, error, message):
    with pytest.raises(error, match=message):
        TT(cores)
