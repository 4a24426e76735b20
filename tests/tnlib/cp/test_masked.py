"""CP with missing entries: the fit is to what is observed, and only to that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, tensors
from tests.tolerances import rounding
from tnlib import CP, cp_als
from tnlib.cp import damped, masked, mttkrp

METHODS = ("als", "lm", "auto")
SEEDS = st.integers(0, 2**32 - 1)


def of_rank(shape, rank, seed=0, offset=0.0, dtype=float):
    """A random array that is a sum of `rank` terms and a constant."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((size, rank)) for size in shape]
    if dtype is complex:
        factors = [factor + 1j * rng.standard_normal(factor.shape) for factor in factors]
    return CP(np.ones(rank, dtype), tuple(factors)).to_dense() + offset


def observed(shape, share, seed=0):
    """A random mask in which every index of every mode is observed."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    for mode, size in enumerate(shape):
        index = [rng.integers(0, n, size) for n in shape]
        index[mode] = np.arange(size)
        mask[tuple(index)] = True
    return mask


def off(cp, array, entries=...):
    """Relative difference over some entries, in double."""
    dense = CP(numpy_of(cp.weights).astype(float), tuple(map(wide, cp.factors))).to_dense()
    return np.linalg.norm((dense - array)[entries]) / np.linalg.norm(np.asarray(array)[entries])


def wide(array):
    array = numpy_of(array)
    return array.astype(complex if np.iscomplexobj(array) else float)


@pytest.fixture(params=["formed", "iterated"])
def solver(request, monkeypatch):
    """Steps of Levenberg-Marquardt from a Jacobian, or by conjugate gradients."""
    if request.param == "iterated":
        monkeypatch.setattr(masked, "_DENSE", 0)


def test_large_problems_are_solved_by_iterations(solver):
    array = of_rank((5, 6, 7), 2)
    mask = observed(array.shape, 0.7)
    for dtype in (float, complex):
        cp = cp_als(array.astype(dtype), 3, mask=mask, method="lm", init="random")
        assert off(cp, array) < 1e-6


@given(SEEDS, st.booleans())
@settings(max_examples=10)
def test_a_step_with_everything_observed_is_that_without_a_mask(seed, is_complex):
    rng = np.random.default_rng(seed)
    shape, rank, damping = (3, 4, 2), 2, 0.1
    draw = [
        rng.standard_normal((rank, n)) + 1j * is_complex * rng.standard_normal((rank, n))
        for n in (*shape, *shape)
    ]
    factors, descent = draw[:3], draw[3:]
    if not is_complex:
        factors, descent = [f.real for f in factors], [f.real for f in descent]
    grams = [mttkrp.gram(f) for f in factors]
    blocks = [mttkrp.normal(grams, k, 0.0) for k in range(3)]
    pairs = {(k, j): mttkrp.hadamard(grams, (k, j)) for k in range(3) for j in range(k)}
    expected = damped.damped_step(factors, blocks, pairs, descent, damping)
    zeros = np.zeros((1, *shape), factors[0].dtype)
    data = mttkrp.Data.of(zeros, mask=np.ones((1, *shape), bool))
    condition = max(float(np.linalg.norm(block)) for block in blocks) * 3 / damping
    ridges = [np.full((rank, 1), damping)] * 3
    for solve, accuracy in ((masked._dense_solve, 0.0), (masked._iterative_solve, 1e-2)):
        step = solve(data, factors, descent, ridges)
        for ours, theirs in zip(step, expected, strict=True):
            size = np.abs(theirs).max()
            allowed = rounding("float64", 100, size, condition) + accuracy * size * condition
            assert np.abs(ours - theirs).max() <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.8, 0.4])
@pytest.mark.parametrize(("offset", "dtype"), [(0.0, float), (3.0, float), (0.0, complex)])
def test_entries_that_are_missing_are_found(method, share, offset, dtype, to_library):
    shape = (8, 9, 10)
    array = of_rank(shape, 2, offset=offset, dtype=dtype)
    mask = observed(shape, share)
    known = to_library(np.where(mask, array, np.nan))
    rank = 3 if offset else 2
    cp = cp_als(known, rank, mask=to_library(mask), method=method, tol=1e-10, max_iter=300)
    assert off(cp, array) < 1e-6


@given(tensors(min_order=2), st.integers(1, 4), SEEDS, st.sampled_from(METHODS))
@settings(max_examples=12)
def test_the_error_is_that_over_observed_entries(array, rank, seed, method):
    mask = observed(array.shape, 0.6, seed)
    for to in LIBRARIES.values():
        cp = cp_als(to(array), rank, mask=to(mask), method=method, max_iter=8)
        if np.any(array[mask]):
            assert abs(cp.error - off(cp, array, mask)) <= rounding("float64", 100, 10)


@given(SEEDS, st.sampled_from(METHODS))
@settings(max_examples=5)
def test_what_is_not_observed_does_not_matter(seed, method):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((3, 4, 5))
    mask = observed(array.shape, 0.5, seed)
    found = [
        cp_als(np.where(mask, array, other), 2, mask=mask, method=method, max_iter=6)
        for other in (0.0, np.nan, np.inf, 1e300)
    ]
    assert len({cp.error for cp in found}) == 1


@given(tensors(min_order=2, max_order=3), st.integers(1, 3))
@settings(max_examples=20)
def test_with_everything_observed_the_fit_is_that_without_a_mask(array, rank):
    full = np.ones(array.shape, bool)
    plain = cp_als(array, rank, method="als", compress=False, max_iter=6)
    assert cp_als(array, rank, method="als", mask=full, max_iter=6).error <= plain.error + 1e-6


@given(SEEDS, st.sampled_from(METHODS))
@settings(max_examples=5)
def test_no_iteration_raises_the_error(seed, method):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((5, 4, 6))
    mask = observed(array.shape, 0.6, seed)
    cp = cp_als(array, 3, mask=mask, method=method, max_iter=8, tol=0.0, init="random")
    assert np.all(np.diff(np.array(cp.info.trace)) <= 1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_is_completed_to_its_rounding(dtype, method):
    array = torch.from_numpy(of_rank((6, 7, 8), 2)).to(getattr(torch, dtype))
    mask = torch.from_numpy(observed(array.shape, 0.7))
    cp = cp_als(array, 3, mask=mask, method=method)
    assert cp.weights.dtype == array.dtype
    exact = array.double().numpy()
    assert abs(cp.error - off(cp, exact, mask.numpy())) <= rounding("float32", 10)
    assert cp.error < 8 * {"float32": 2**-20, "float16": 2**-11, "bfloat16": 2**-8}[dtype]


def test_missing_entries_of_a_noisy_table_are_predicted_better_than_by_its_mean():
    rng = np.random.default_rng(0)
    array = of_rank((15, 16, 6), 2) + 0.1 * rng.standard_normal((15, 16, 6)) + 5.0
    mask = observed(array.shape, 0.5)
    cp = cp_als(array, 3, mask=mask)
    missed = (cp.to_dense() - array)[~mask]
    assert np.std(missed) < 0.2 * np.std(array[~mask])


CUBE, SEEN = np.ones((2, 3, 4)), np.ones((2, 3, 4), bool)
HOLE = SEEN.copy()
HOLE[:, 1] = False
BAD = [
    (lambda: cp_als(CUBE, 1, mask=SEEN.astype(int)), TypeError, "mask must be boolean"),
    (lambda: cp_als(CUBE, 1, mask=SEEN[0]), ValueError, r"mask has shape \(3, 4\), expected"),
    (lambda: cp_als(CUBE, 1, mask=~SEEN), ValueError, "no entry is observed"),
    (lambda: cp_als(CUBE, 1, mask=HOLE), ValueError, "index 1 in mode 1 is observed"),
    (lambda: cp_als(CUBE, 1, mask=torch.from_numpy(SEEN)), TypeError, "one library"),
    (lambda: cp_als(CUBE * np.nan, 1, mask=SEEN), ValueError, "nan or inf"),
    (lambda: cp_als(CUBE, 1, mask=SEEN, compress=True), ValueError, "compress=True would lose"),
    (lambda: cp_als(CUBE, 1, mask="all"), TypeError, "got str"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_masks_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_zeros_and_integers_with_a_mask():
    mask = observed((2, 3, 4), 0.5)
    assert cp_als(np.zeros((2, 3, 4)), 2, mask=mask).error == 0.0
    cp = cp_als(np.arange(24).reshape(2, 3, 4), 2, mask=mask)
    assert cp.weights.dtype == np.float64
    assert cp.error < 0.5
