"""CP: true errors, descent, invariances, swamps, degeneracy, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, relative, tensors
from tests.tolerances import SUBSPACE, assert_close, cancellation, rounding
from tnlib import CP, cp_als, cp_als_batch
from tnlib.cp import damped
from tnlib.testing import _build

RANKS = st.integers(1, 6)
LIBRARY = st.sampled_from(sorted(LIBRARIES))
METHODS = st.sampled_from(["auto", "als", "lm"])
INITS = st.sampled_from(["hosvd", "random"])
# Three terms fit this matrix to rounding, and from a random start two of them nearly cancel.
CANCELLING = _build.tensor(np.asarray, (3, 5), 33286, 6.0, 1.0)


def of_rank(rng, shape, rank):
    """A random array that is a sum of `rank` terms."""
    factors = tuple(rng.standard_normal((size, rank)) for size in shape)
    return CP(np.ones(rank), factors).to_dense()


def collinear(size, rank, cosine, seed=0):
    """Three modes whose factor columns all have the given cosine."""
    rng = np.random.default_rng(seed)
    gram = (1 - cosine) * np.eye(rank) + cosine
    factors = tuple(
        np.linalg.qr(rng.standard_normal((size, rank)))[0] @ np.linalg.cholesky(gram).T
        for _ in range(3)
    )
    return CP(np.ones(rank), factors).to_dense()


def rounding_of(cp, array):
    """Of an error: of the sum over the terms, which may cancel, and of that over the entries."""
    operations = cp.rank + len(cp.factors) + math.prod(cp.shape)
    return rounding(np.float64, operations, size=1 + cancellation(cp, array))


@given(tensors(), RANKS, LIBRARY, METHODS, INITS)
@settings(max_examples=120)
def test_the_reported_error_is_the_true_error(array, rank, library, method, init):
    cp = cp_als(LIBRARIES[library](array), rank, method=method, init=init, max_iter=12)
    assert abs(cp.error - relative(cp.to_dense(), array)) <= rounding_of(cp, array)
    assert cp.rank == rank
    assert cp.error_kind == "exact"


@given(tensors(), RANKS, METHODS, INITS)
def test_terms_are_unit_columns_with_descending_weights(array, rank, method, init):
    weights, factors = cp_als(array, rank, method=method, init=init, max_iter=5)
    assert np.all(weights >= 0)
    assert np.all(np.diff(weights) <= 0)
    for factor in factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1.0, atol=1e-12)


@given(tensors(), RANKS, METHODS, INITS, LIBRARY)
@example(CANCELLING, 3, "auto", "random", "numpy")
@example(CANCELLING, 3, "als", "random", "torch")
def test_no_iteration_raises_the_error(array, rank, method, init, library):
    data = LIBRARIES[library](array)
    cp = cp_als(data, rank, method=method, init=init, max_iter=20, tol=0.0, compress=False)
    assert np.all(np.diff(np.array(cp.info.trace)) <= 1e-8)


def test_sweeps_end_where_rounding_would_raise_the_error(to_library):
    options = {"init": "random", "tol": 0.0, "compress": False}
    for method in ("als", "auto"):
        cp = cp_als(to_library(CANCELLING), 3, method=method, **options)
        assert cp.info.converged
        assert cp.error < 1e-9


@pytest.mark.parametrize("method", ["auto", "als"])
def test_no_iteration_raises_the_error_in_single_precision(method, to_library):
    a, b = np.random.default_rng(1).standard_normal((2, 4))
    sides = [(a, a, b), (a, b, a), (b, a, a)]
    array = to_library(sum(np.einsum("i,j,k->ijk", *side) for side in sides).astype(np.float32))
    for rank in (2, 3, 4):
        cp = cp_als(array, rank, method=method, init="random", max_iter=150, tol=0.0)
        assert np.all(np.diff(np.array(cp.info.trace)) <= 1e-6)


def test_every_member_of_a_batch_keeps_its_lowest_error():
    members = np.random.default_rng(0).standard_normal((3, *CANCELLING.shape))
    members[1] = CANCELLING
    found = cp_als_batch(members, 3, init="random", tol=0.0)
    for cp in found:
        rounded = rounding_of(cp, CANCELLING)
        assert np.all(np.diff(np.array(cp.info.trace)) <= rounded)
        assert cp.error == pytest.approx(cp.info.trace[-1], abs=rounded)


@given(tensors(), RANKS, INITS)
@example(CANCELLING, 3, "random")
def test_continuing_from_a_result_does_not_raise_the_error(array, rank, init):
    first = cp_als(array, rank, method="als", init=init, max_iter=4)
    second = cp_als(array, rank, method="als", init=first, max_iter=4)
    assert second.error <= first.error + 1e-8


@given(tensors(), st.integers(1, 3), st.sampled_from([2.0**40, 2.0**-40]))
def test_scaling_the_array_scales_only_the_weights(array, rank, factor):
    plain, scaled = (cp_als(a, rank, max_iter=5) for a in (array, array * factor))
    assert scaled.error == pytest.approx(plain.error, rel=1e-6, abs=SUBSPACE)


@given(tensors(min_order=3, max_order=3), st.integers(1, 3), st.permutations(range(3)))
@settings(max_examples=30)
def test_permuting_the_axes_of_a_converged_result_keeps_it(array, rank, axes):
    cp = cp_als(array, rank, max_iter=200)
    turned = CP(cp.weights, tuple(cp.factors[axis] for axis in axes))
    again = cp_als(array.transpose(axes), rank, init=turned, max_iter=3)
    assert again.error <= cp.error + 1e-8


@given(tensors(), RANKS)
def test_both_libraries_find_equally_good_terms(array, rank):
    ours, theirs = (cp_als(a, rank, max_iter=5) for a in (array, torch.from_numpy(array)))
    assert isinstance(theirs.weights, torch.Tensor)
    assert theirs.error == pytest.approx(ours.error, abs=SUBSPACE)


@given(tensors(), RANKS)
def test_tensorly_rebuilds_the_same_array(array, rank):
    cp = cp_als(array, rank, max_iter=3)
    rebuilt = tensorly.cp_to_tensor((cp.weights, list(cp.factors)))
    assert_close(cp.to_dense(), rebuilt, operations=rank + array.ndim, size=cp.weights.sum())


@given(st.integers(1, 8), st.integers(1, 8), RANKS)
def test_a_matrix_gets_its_truncated_svd(rows, columns, rank):
    matrix = np.random.default_rng(rows * 9 + columns).standard_normal((rows, columns))
    values = np.linalg.svd(matrix, compute_uv=False)
    tail = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
    assert cp_als(matrix, rank).error == pytest.approx(tail, abs=1e-6)


@pytest.mark.parametrize("compress", [None, True, False])
@pytest.mark.parametrize("shape", [(30, 31, 32), (12, 13, 14, 15)])
def test_well_separated_terms_are_fitted_with_and_without_compression(shape, compress):
    rng = np.random.default_rng(0)
    array = of_rank(rng, shape, 3)
    array += 0.01 * np.std(array) * rng.standard_normal(shape)
    cp = cp_als(array, 3, compress=compress)
    assert cp.info.converged
    assert cp.error == pytest.approx(0.01, rel=0.02)
    assert cp.error == pytest.approx(cp_als(array, 3, compress=False).error, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dense", [3200, 0])
def test_swamps_are_crossed_by_levenberg_marquardt(seed, dense, monkeypatch):
    monkeypatch.setattr(damped, "_DENSE", dense)
    array = collinear(20, 5, 0.9, seed)
    assert cp_als(array, 5, method="als").error > 1e-3
    cp = cp_als(array, 5)
    assert cp.error < 1e-6
    assert cp.info.kernels == ("als", "lm")
    assert cp_als(array, 5, method="lm", compress=False).error < 1e-6


def test_a_matrix_that_is_not_positive_to_rounding_is_solved_in_another_way(monkeypatch):
    def refuse(*arguments, **options):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(damped.scipy.linalg, "cho_factor", refuse)
    monkeypatch.setattr(damped, "_SMALL", 0)
    cp = cp_als(collinear(20, 5, 0.9), 5)
    assert cp.error < 1e-6
    assert "cholesky: solve instead of potrf" in cp.info.fallbacks


def test_single_precision_tells_the_truth():
    array = of_rank(np.random.default_rng(0), (20, 21, 22), 3).astype(np.float32)
    cp = cp_als(array, 3)
    wide = CP(cp.weights.astype(float), tuple(f.astype(float) for f in cp.factors))
    assert cp.weights.dtype == np.float32
    assert cp.error == pytest.approx(relative(wide.to_dense(), array), abs=1e-7)
    assert cp.error < 2e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_as_it_came(dtype):
    array = of_rank(np.random.default_rng(0), (6, 7, 8), 2)
    cp = cp_als(torch.from_numpy(array).to(getattr(torch, dtype)), 2)
    assert cp.weights.dtype == getattr(torch, dtype)
    wide = CP(cp.weights.double(), tuple(factor.double() for factor in cp.factors))
    exact = relative(wide.to_dense(), torch.from_numpy(array).to(getattr(torch, dtype)))
    assert cp.error == pytest.approx(exact, abs=1e-5)
    assert 1e-5 < cp.error < 2e-2


@pytest.mark.parametrize("method", ["auto", "als", "lm"])
def test_a_rank_above_the_true_one_ends_well(method):
    array = of_rank(np.random.default_rng(0), (8, 9, 10), 2)
    cp = cp_als(array, 5, method=method, max_iter=300)
    assert cp.error < 1e-4
    assert cp.error == pytest.approx(relative(cp.to_dense(), array), abs=rounding_of(cp, array))
    many = cp_als(array[:3, :3, :3], 40, method=method)
    assert many.error < 1e-6
    assert all(np.isfinite(factor).all() for factor in many.factors)


def test_the_zero_array_has_no_error(to_library):
    for cp in (cp_als(to_library(np.zeros((3, 4, 5))), 2), cp_als_batch(np.zeros((2, 3, 4)), 2)[1]):
        assert (cp.error, cp.info.reason) == (0.0, "the array is zero")
        assert not numpy_of(cp.to_dense()).any()


def test_a_degenerate_fit_is_diagnosed():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(4) for _ in range(2))
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    array = sum(np.einsum("i,j,k->ijk", *term) for term in terms)
    cp = cp_als(array, 2, max_iter=500, init="random")
    cosines = cp.congruence()
    assert cosines.min() < -0.95
    assert "degenerate: two terms nearly cancel" in cp.info.reason
    assert cp.weights.max() > 3 * np.linalg.norm(array)
    np.testing.assert_allclose(np.diag(cosines), 1.0)


def test_congruence_is_the_cosine_of_the_terms():
    cp = cp_als(np.random.default_rng(0).standard_normal((4, 5, 6)), 3, max_iter=5)
    terms = [CP(cp.weights[[r]], tuple(f[:, [r]] for f in cp.factors)).to_dense() for r in range(3)]
    expected = [
        [np.vdot(s, t) / np.linalg.norm(s) / np.linalg.norm(t) for t in terms] for s in terms
    ]
    np.testing.assert_allclose(cp.congruence(), expected, atol=1e-12)


def test_restarts_keep_the_best_of_their_starts():
    array = np.random.default_rng(3).standard_normal((5, 5, 5))
    errors = {n: cp_als(array, 4, restarts=n, rng=7).error for n in (0, 2, 5)}
    assert errors[5] <= errors[2] <= errors[0]


def test_the_callback_sees_every_iteration_and_can_stop():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    seen = []

    def four_more(iteration, error):
        seen.append((iteration, error))
        return iteration < 4

    cp = cp_als(array, 3, callback=four_more)
    assert [iteration for iteration, _ in seen] == [1, 2, 3, 4]
    assert cp.info.trace == tuple(error for _, error in seen)
    assert (cp.info.converged, cp.info.reason) == (False, "the callback asked to stop")


def test_members_of_a_batch_at_another_scale_are_drawn_and_stopped_like_the_others():
    cube = np.random.default_rng(0).standard_normal((4, 5, 6))
    batch = [cube, cube * 1e-200]
    seen = []
    found = cp_als_batch(batch, 2, callback=lambda k, _: seen.append(k) or False)
    assert [cp.info.n_iter for cp in found] == [1, 1]
    assert seen == [1, 1]
    options = {"init": "random", "max_iter": 2}
    errors = [[cp.error for cp in cp_als_batch(batch, 2, rng=s, **options)] for s in (1, 1, 7)]
    assert errors[0] == errors[1]
    assert errors[0][1] != errors[2][1]


def test_a_callback_that_says_nothing_or_true_does_not_stop():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    for answer in (None, True, 1):
        assert cp_als(array, 3, callback=lambda *_, a=answer: a, max_iter=9).info.n_iter == 9


def test_max_iter_is_an_honest_limit():
    cp = cp_als(collinear(20, 5, 0.9), 5, max_iter=3)
    assert (cp.info.n_iter, cp.info.converged) == (3, False)
    assert cp.info.reason == "max_iter was reached"
    noisy = np.random.default_rng(0).standard_normal((20, 20, 20))
    for limit in range(1, 12):
        short = cp_als(noisy, 2, max_iter=limit, tol=1e-3)
        assert short.info.n_iter <= limit
        assert short.info.converged == (short.info.reason != "max_iter was reached")


def test_extreme_scales_neither_overflow_nor_vanish():
    array = np.random.default_rng(0).standard_normal((5, 6, 7))
    expected = cp_als(array, 2).error
    for scale in (1e300, 1e-290):
        assert cp_als(array * scale, 2).error == pytest.approx(expected, rel=1e-6)


def test_input_is_not_modified(to_library):
    array = to_library(np.random.default_rng(0).standard_normal((4, 5, 6)))
    start = cp_als(array, 2, max_iter=1)
    before = [numpy_of(x).copy() for x in (array, start.weights, *start.factors)]
    cp_als(array, 2, init=start)
    for was, now in zip(before, (array, start.weights, *start.factors), strict=True):
        np.testing.assert_array_equal(was, numpy_of(now))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), RANKS, LIBRARY, INITS)
@settings(max_examples=40)
def test_a_batch_is_decomposed_like_its_members(shape, rank, library, init):
    rng = np.random.default_rng(len(shape))
    stack = rng.standard_normal((3, *shape))
    stack[1] = 0
    found = cp_als_batch(LIBRARIES[library](stack), rank, init=init, max_iter=6)
    for cp, member in zip(found, stack, strict=True):
        assert abs(cp.error - relative(cp.to_dense(), member)) <= rounding_of(cp, member)
    if init == "hosvd" and rank <= min(shape):
        alone = cp_als(stack[0], rank, method="als", compress=False, max_iter=6, tol=0.0)
        assert found[0].error <= alone.error + 0.05


def test_a_batch_of_exact_members_is_recovered():
    rng = np.random.default_rng(0)
    members = [of_rank(rng, (6, 7, 8), 2) for _ in range(4)]
    for cp, member in zip(cp_als_batch(members, 2, max_iter=200), members, strict=True):
        assert relative(cp.to_dense(), member) < 1e-5
        assert cp.info.n_iter == len(cp.info.trace)


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e-170), ("float32", 1e-26)])
def test_members_of_very_different_scales_are_all_true(dtype, scale):
    member = np.random.default_rng(0).standard_normal((4, 5, 6))
    pair = np.stack([member, member * scale]).astype(dtype)
    first, second = cp_als_batch(pair, 2, max_iter=50)
    assert second.error == pytest.approx(first.error, abs=1e-3)
    assert float(second.weights[0]) == pytest.approx(float(first.weights[0]) * scale, rel=0.05)


def test_stopping_ends_the_restarts_too():
    seen = []
    cp_als(np.ones((3, 3, 3)), 1, restarts=3, callback=lambda k, _: seen.append(k) or False)
    assert seen == [1]


def test_a_start_of_dead_terms_ends_well():
    array = np.zeros((2, 2, 2))
    array[1, 1, 1] = 1
    dead = CP(np.ones(1), (np.array([[1.0], [0.0]]),) * 3)
    for method in ("auto", "als", "lm"):
        assert cp_als(array, 1, init=dead, method=method).error == pytest.approx(1.0)


def test_the_trace_is_true_where_terms_cancel():
    a, b = np.random.default_rng(0).standard_normal((2, 6))
    sides = [(a, a, b), (a, b, a), (b, a, a)]
    array = sum(np.einsum("i,j,k->ijk", *side) for side in sides)
    cp = cp_als(array, 2, max_iter=400, init="random", tol=1e-12)
    assert cp.weights.max() > 100
    assert cp.info.trace[-1] == pytest.approx(cp.error, rel=1e-2)


def test_the_dense_form_is_differentiable():
    rng = np.random.default_rng(0)
    shapes = [(2,), (3, 2), (4, 2), (2, 2)]
    leaves = [torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(lambda w, *f: CP(w, f).to_dense(), leaves)
    assert torch.autograd.gradcheck(lambda w, *f: CP(w, f).congruence(), leaves)


def test_decomposing_inside_a_graph_is_refused():
    with pytest.raises(ValueError, match="not differentiable"):
        cp_als(torch.ones(2, 2, requires_grad=True) * 2, 1)


CUBE = np.ones((2, 3, 4))
NAN = CP(np.full(1, np.nan), tuple(np.ones((size, 1)) for size in CUBE.shape))
BAD = [
    (lambda: cp_als(np.ones(3), 1), ValueError, r"two axes or more, got \(3,\)"),
    (lambda: cp_als(CUBE * np.inf, 1), ValueError, "nan or inf"),
    (lambda: cp_als([[1.0]], 1), TypeError, "got list"),
    (lambda: cp_als(np.ones((0, 2)), 1), ValueError, "empty"),
    (lambda: cp_als(CUBE, 0), ValueError, "rank must be at least 1"),
    (lambda: cp_als(CUBE, 1.5), TypeError, "rank must be an integer, got 1.5"),
    (lambda: cp_als(CUBE, 1, method="hals"), ValueError, "method must be one of auto, als, lm"),
    (lambda: cp_als(CUBE, 1, init="svd"), ValueError, "a CP or one of hosvd, random"),
    (lambda: cp_als(CUBE, 2, init=cp_als(CUBE, 1)), ValueError, "rank 1, expected .* and 2"),
    (lambda: cp_als(CUBE, 1, init=cp_als(CUBE.T, 1)), ValueError, "init has shape"),
    (lambda: cp_als(CUBE, 1, init=NAN), ValueError, "init contains nan or inf"),
    (lambda: cp_als(CUBE, 1, init=np.ones(3)), ValueError, "a CP or one of hosvd, random"),
    (lambda: cp_als(CUBE, 1, init=cp_als(CUBE * 1j, 1)), TypeError, "init is complex and X"),
    (lambda: cp_als(CUBE * 1j, 1, dtype="float64"), TypeError, "cannot be returned as float64"),
    (lambda: cp_als(CUBE, 1, tol=-1), ValueError, "at least 0, got -1"),
    (lambda: cp_als(CUBE, 1, tol=float("nan")), ValueError, "finite number"),
    (lambda: cp_als(CUBE, 1, max_iter=0), ValueError, "max_iter must be at least 1"),
    (lambda: cp_als(CUBE, 1, restarts=-1), ValueError, "restarts must be at least"),
    (lambda: cp_als(CUBE, 1, compress="yes"), TypeError, "compress must be True, False or None"),
    (lambda: cp_als(CUBE, 1, callback=3), TypeError, "callback must be callable, got int"),
    (lambda: cp_als(CUBE, 1, rng="x"), TypeError, "rng must be"),
    (lambda: cp_als(CUBE, 1, dtype="int8"), TypeError, "dtype must be one of"),
    (lambda: cp_als_batch(CUBE[0], 1), ValueError, "two axes or more"),
    (lambda: cp_als_batch([CUBE, CUBE.T], 1), ValueError, "must have one shape"),
    (lambda: cp_als_batch([CUBE], 1, init=cp_als(CUBE, 1)), ValueError, "one of hosvd, random"),
    (lambda: CP(np.ones((2, 2)), (np.ones((3, 2)),)), ValueError, "weights must be a vector"),
    (lambda: CP(np.ones(2), (np.ones((3, 1)),)), ValueError, "1 columns for 2 weights"),
    (lambda: CP(np.ones(2), ()), ValueError, "factors must not be empty"),
    (lambda: CP(np.ones(2), (np.ones(3),)), ValueError, "non-empty matrix"),
    (lambda: CP(np.ones(2), (torch.ones(3, 2),)), TypeError, "one library"),
    (lambda: CP(np.ones(2), (np.ones((3, 2), np.float32),)), TypeError, "one dtype"),
    (lambda: CP(np.ones(2, np.float32), (np.ones((3, 2)) * 1j,)), TypeError, "one dtype"),
    (lambda: CP(np.ones(2) * 1j, (np.ones((3, 2)),)), TypeError, "one dtype"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
