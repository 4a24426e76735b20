"""Trains from functions: right where the function has short bonds, and honest about estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import relative
from tests.tolerances import assert_close, rounding
from tnlib import load, save, to_tensorly, tt_cross
from tnlib.linalg.maxvol import maxvol
from tnlib.testing import trains

SHAPE = (7, 8, 9, 10)
DENSE = np.sqrt(sum(np.ogrid[tuple(map(slice, SHAPE))]))


def root(index):
    return np.sqrt(index.sum(axis=1))


@settings(max_examples=25)
@given(trains(max_order=4, max_size=4, max_rank=3), st.integers(0, 99))
def test_a_function_that_is_a_train_is_found(train, seed):
    dense = train.to_dense()
    found = tt_cross(lambda index: dense[tuple(index.T)], train.shape, eps=1e-9, rng=seed)
    assert found.error_kind == "exact"
    true = relative(found.to_dense(), dense)
    assert abs(found.error - true) <= rounding(np.float64, 100)
    assert true <= 1e-9
    assert found.info.converged


@settings(max_examples=10)
@given(st.sampled_from([1e-3, 1e-6, 1e-9]), st.integers(0, 99))
def test_a_tolerance_is_met_and_the_estimate_is_near_the_truth(eps, seed):
    found = tt_cross(root, SHAPE, eps=eps, n_samples=500, rng=seed)
    assert found.error_kind == "sampled"
    assert found.error <= eps
    # The mean of 500 squares of errors that no sample of the run deviates from by orders.
    assert relative(found.to_dense(), DENSE) <= 10 * eps
    assert found.info.evaluations < DENSE.size * 5
    assert len(found.info.trace) == found.info.n_iter


def test_no_more_values_are_asked_for_than_allowed_and_all_are_counted():
    asked = []

    def counted(index):
        assert index.dtype == np.int64
        assert ((index >= 0) & (index < SHAPE)).all()
        asked.append(len(index))
        return root(index)

    for most in (700, 2000, 5000):
        asked.clear()
        found = tt_cross(
            counted, SHAPE, eps=1e-14, dtype="float64", max_evaluations=most, n_samples=200
        )
        assert found.info.evaluations == sum(asked) <= most
        assert (found.info.converged, found.info.reason) == (False, "max_evaluations was reached")
        assert np.isfinite(found.error)


def test_ranks_are_kept_and_the_best_train_is_given():
    found = tt_cross(root, SHAPE, ranks=(2, 3, 2), n_samples=300)
    assert all(r <= m for r, m in zip(found.ranks, (1, 2, 3, 2, 1), strict=True))
    assert found.error == min(found.info.trace)
    assert found.info.reason == "the sampled error no longer falls"
    exact = tt_cross(root, SHAPE, ranks=9)
    assert exact.error < 1e-8
    both = tt_cross(root, SHAPE, ranks=2, eps=1e-10)
    assert max(both.ranks) == 2
    assert not both.info.converged


def test_functions_of_torch_give_trains_of_torch_and_like_decides():
    def on_torch(index):
        return torch.cos(torch.as_tensor(index).sum(dim=1).float())

    found = tt_cross(on_torch, (6, 7, 8), eps=1e-4)
    assert found.cores[0].dtype == torch.float32
    assert isinstance(found.cores[0], torch.Tensor)
    given_ = []
    like = torch.empty(0)
    again = tt_cross(lambda i: given_.append(i) or on_torch(i), (6, 7, 8), eps=1e-4, like=like)
    assert given_[0].dtype == torch.int64
    assert_close(again.to_dense(), found.to_dense(), 200)
    across = tt_cross(lambda i: root(i.numpy()), (6, 7, 8), eps=0.1, like=like, dtype="bfloat16")
    assert across.cores[0].dtype == torch.bfloat16
    back = tt_cross(on_torch, (6, 7, 8), eps=1e-4, like=np.empty(0))
    assert back.cores[0].dtype == np.float32


def test_whole_numbers_complex_values_scales_and_ones():
    whole = tt_cross(lambda index: index.sum(axis=1), (5, 6, 7), eps=1e-9)
    assert whole.cores[0].dtype == np.float64
    assert whole.ranks == (1, 2, 2, 1)
    truth = tt_cross(lambda index: index[:, 0] > index[:, 1], (5, 6), eps=1e-9)
    assert_close(truth.to_dense(), np.greater.outer(np.arange(5), np.arange(6)) * 1.0, 100)
    wave = tt_cross(lambda index: np.exp(1j * index.sum(axis=1)), (20,) * 4, eps=1e-9)
    assert wave.ranks == (1,) * 5
    assert complex(wave[1, 2, 3, 4]) == pytest.approx(np.exp(10j), rel=1e-9)
    for scale in (1e300, 1e-300):
        found = tt_cross(lambda i, s=scale: s * np.exp(-i.sum(axis=1)), (8,) * 4, eps=1e-9)
        assert found.ranks == (1,) * 5
        assert found.error < 1e-9
    ones = tt_cross(lambda index: np.cos(index.sum(axis=1)), (1, 5, 1, 7, 1), eps=1e-9)
    assert ones.shape == (1, 5, 1, 7, 1)
    single = tt_cross(lambda index: np.cos(index[:, 0]), (50,), eps=1e-9)
    assert (single.error_kind, single.ranks) == ("exact", (1, 1))
    many = tt_cross(lambda index: index.sum(axis=1), (2,) * 100, eps=1e-9, n_samples=100)
    assert max(many.ranks) == 2


def test_zero_and_constant_functions_end_at_once():
    zero = tt_cross(lambda index: np.zeros(len(index)), (10,) * 8, ranks=3)
    assert (zero.error, zero.ranks) == (0.0, (1,) * 9)
    assert zero.info.reason == "the function is zero at every index tried"
    constant = tt_cross(lambda index: np.full(len(index), 3.0), (10,) * 8, ranks=3)
    assert constant.ranks == (1,) * 9
    assert constant.info.n_iter == 1


def test_an_entry_that_no_sample_can_find_is_found_from_a_start():
    where = np.array([3, 1, 4, 1, 5, 9, 2, 6])

    def spike(index):
        return (index == where).all(axis=1) * 2.5

    # The estimate cannot know better; it does not say "exact".
    blind = tt_cross(spike, (10,) * 8, eps=1e-6)
    assert (blind.error, blind.error_kind) == (0.0, "sampled")
    seen = tt_cross(spike, (10,) * 8, eps=1e-6, start=where[None] - 10)
    assert float(seen.gather(where)) == pytest.approx(2.5)
    assert float(seen.norm()) == pytest.approx(2.5)
    assert seen.error < 1e-6


def test_a_bond_on_which_all_pivots_are_independent_is_not_finished():
    found = tt_cross(lambda i: (i[:, 0] == i[:, 1]) * 1.0, (40, 40), eps=1e-9, n_samples=300)
    assert found.ranks == (1, 40, 1)
    assert_close(found.to_dense(), np.eye(40), 1000)


def test_the_callback_sees_the_trace_and_can_stop():
    seen = []
    tt_cross(root, SHAPE, eps=1e-12, callback=lambda n, error: seen.append((n, error)))
    assert [n for n, _ in seen] == list(range(1, len(seen) + 1))
    found = tt_cross(root, SHAPE, eps=1e-12, callback=lambda n, error: n < 2)
    assert (found.info.n_iter, found.info.reason) == (2, "the callback asked to stop")
    assert found.info.trace == tuple(error for _, error in seen[:2])
    one = tt_cross(root, SHAPE, eps=1e-12, max_iter=1)
    assert (one.info.converged, one.info.reason) == (False, "max_iter was reached")


def test_a_sampled_error_is_saved_as_one(tmp_path):
    found = tt_cross(root, SHAPE, eps=1e-4)
    save(tmp_path / "one.safetensors", {"found": found})
    again = load(tmp_path / "one.safetensors")["found"]
    assert (again.error, again.error_kind, again.info) == (found.error, "sampled", found.info)
    assert to_tensorly(found).rank == found.ranks


@given(st.integers(1, 8), st.integers(0, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_rows_of_large_volume_interpolate_with_small_coefficients(rank, more, seed, imaginary):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rank + more, rank))
    if imaginary:
        matrix = matrix + 1j * rng.standard_normal(matrix.shape)
    basis = np.linalg.qr(matrix)[0]
    rows, coefficients = maxvol(basis)
    assert len(set(rows.tolist())) == rank
    assert np.abs(coefficients).max() <= 1.06
    assert_close(coefficients @ basis[rows], basis, 100 * rank, 1.0)


def nothing(index):
    return np.zeros(len(index))


BAD = [
    (lambda: tt_cross(3, (2, 2), eps=0.1), TypeError, "function must be callable, got int"),
    (lambda: tt_cross(nothing, (2, 2)), ValueError, "give ranks="),
    (lambda: tt_cross(nothing, (2, 0), eps=0.1), ValueError, "at least 1, got 0"),
    (lambda: tt_cross(nothing, 4, eps=0.1), TypeError, "shape must be a sequence"),
    (lambda: tt_cross(lambda i: 1.0, (2, 2), eps=0.1), TypeError, "must return a NumPy array"),
    (lambda: tt_cross(lambda i: np.float64(1), (2, 2), eps=0.1), ValueError, r"got shape \(\)"),
    (lambda: tt_cross(lambda i: i, (2, 2), eps=0.1), ValueError, "for index vectors of shape"),
    (lambda: tt_cross(lambda i: i[:0, 0], (2, 2), eps=0.1), ValueError, r"got shape \(0,\)"),
    (
        lambda: tt_cross(lambda i: np.where(i[:, 0] == 3, np.nan, 1.0), (9, 9), eps=0.1),
        ValueError,
        r"function gave nan at \(3, \d\)",
    ),
    (lambda: tt_cross(lambda i: nothing(i) + np.inf, (9, 9), eps=0.1), ValueError, "gave inf at"),
    (lambda: tt_cross(lambda i: nothing(i).astype(str), (2, 2), eps=0.1), TypeError, "numeric"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, max_evaluations=3), ValueError, "one sweep"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, max_iter=0), ValueError, "max_iter must be"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, callback=1), TypeError, "callback must be"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, start=[[0, 0]]), TypeError, "got list"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, start=np.zeros((1, 2))), TypeError, "integers"),
    (
        lambda: tt_cross(nothing, (2, 2), eps=0.1, start=np.zeros((1, 3), int)),
        ValueError,
        r"shape \(m, 2\)",
    ),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, start=np.array([[0, 2]])), IndexError, "axis 1"),
    (lambda: tt_cross(nothing, (2, 2), eps=0.1, like=[1]), TypeError, "got list"),
    (lambda: tt_cross(nothing, (2, 2), eps=1e-9, dtype="float32"), ValueError, "cannot be met"),
    (
        lambda: tt_cross(lambda i: nothing(i) + 1j, (2, 2), eps=0.1, dtype="float32"),
        TypeError,
        "complex values cannot",
    ),
    (
        lambda: tt_cross(lambda i: nothing(i) + 1e5, (2, 2), eps=0.1, dtype="float16"),
        ValueError,
        "pass a wider dtype",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_and_bad_functions_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_of_the_function_come_through():
    def broken(index):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tt_cross(broken, (2, 2), eps=0.1)
