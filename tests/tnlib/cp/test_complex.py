"""CP of complex arrays: true errors, exact recovery, and what conjugation and phases do."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import numpy_of, relative
from tests.tolerances import assert_close
from tnlib import CP, cp_als, cp_als_batch, load, save
from tnlib.cp import damped
from tnlib.interop.conversions import from_tensorly, to_tensorly

METHODS = ("als", "lm", "auto")
STARTS = ("hosvd", "random")
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4)


def normal(rng, shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def of_rank(shape, rank, seed=0):
    rng = np.random.default_rng(seed)
    return CP(np.ones(rank), tuple(normal(rng, (size, rank)) for size in shape)).to_dense()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("shape", [(6, 7, 8), (3, 4, 5, 2), (20, 21, 22), (4, 6), (1, 5, 1, 6)])
def test_sums_of_few_terms_are_recovered(method, init, dtype, shape, to_library):
    array = of_rank(shape, 2).astype(dtype)
    cp = cp_als(to_library(array), 2, method=method, init=init, max_iter=200)
    assert str(cp.factors[0].dtype).endswith(dtype)
    assert str(cp.weights.dtype).endswith("float32" if dtype == "complex64" else "float64")
    assert cp.error < 1e-6
    oracle = CP(
        numpy_of(cp.weights).astype(float), tuple(numpy_of(f).astype(complex) for f in cp.factors)
    )
    assert abs(cp.error - relative(oracle.to_dense(), array.astype(complex))) <= 1e-12


@given(SHAPES, st.integers(1, 6), SEEDS, st.sampled_from(METHODS), st.sampled_from(STARTS))
@settings(max_examples=50)
def test_the_error_is_true_and_falls(shape, rank, seed, method, init):
    array = normal(np.random.default_rng(seed), shape)
    cp = cp_als(array, rank, method=method, init=init, max_iter=8, tol=0.0, compress=False)
    assert abs(cp.error - relative(cp.to_dense(), array)) <= 1e-12
    assert np.all(np.diff(np.array(cp.info.trace)) <= 1e-8)
    assert np.all(cp.weights >= 0)
    assert np.all(np.diff(cp.weights) <= 0)
    for factor in cp.factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1.0, atol=1e-12)


@given(SEEDS, st.sampled_from(METHODS))
@settings(max_examples=15)
def test_a_phase_or_a_conjugation_changes_no_error(seed, method):
    array = normal(np.random.default_rng(seed), (3, 4, 5))
    options = {"method": method, "max_iter": 6, "compress": False}
    error = cp_als(array, 2, **options).error
    for other in (array.conj(), array * np.exp(1.3j), 1j * array):
        assert cp_als(other, 2, **options).error == pytest.approx(error, abs=1e-5)


def test_real_numbers_in_a_complex_dtype_are_fitted_as_real_ones():
    array = np.random.default_rng(0).standard_normal((4, 5, 6))
    real = cp_als(array, 3, method="als")
    found = cp_als(array, 3, method="als", dtype="complex128")
    assert found.error == pytest.approx(real.error, abs=1e-6)


def test_a_batch_of_complex_members_is_recovered():
    members = np.stack([of_rank((4, 5, 6), 2, seed) for seed in range(3)])
    for to in (np.asarray, torch.from_numpy):
        for cp, member in zip(cp_als_batch(to(members), 2, max_iter=200), members, strict=True):
            assert relative(numpy_of(cp.to_dense()), member) < 1e-6


@pytest.mark.parametrize("dense", [3200, 0])
@pytest.mark.parametrize("small", [768, 0])
def test_swamps_are_crossed(dense, small, monkeypatch):
    monkeypatch.setattr(damped, "_DENSE", dense)
    monkeypatch.setattr(damped, "_SMALL", small)
    rng = np.random.default_rng(0)
    gram = 0.1 * np.eye(4) + 0.9
    factors = [np.linalg.qr(normal(rng, (12, 4)))[0] @ np.linalg.cholesky(gram).T for _ in range(3)]
    array = CP(np.ones(4), tuple(factors)).to_dense()
    # How long it takes to leave one is up to rounding.
    assert cp_als(array, 4, method="lm", compress=False, max_iter=1000).error < 1e-6


def test_congruence_is_the_complex_cosine_of_the_terms():
    rng = np.random.default_rng(0)
    factors = tuple(normal(rng, (size, 3)) for size in (2, 3, 4))
    for weights in (np.array([2.0, -1.0, 0.0]), normal(rng, 3)):
        cp = CP(weights, factors)
        one = [CP(weights[[r]], tuple(f[:, [r]] for f in factors)).to_dense() for r in range(3)]
        sizes = [max(np.linalg.norm(term), 1e-300) for term in one]
        cosines = [
            [np.vdot(s, t) / m / n for t, n in zip(one, sizes, strict=True)]
            for s, m in zip(one, sizes, strict=True)
        ]
        assert_close(cp.congruence(), cosines, 50, 1.0)
        assert_close(cp.congruence(), cp.congruence().conj().T, 50, 1.0)


def test_terms_that_cancel_are_told():
    a, b = normal(np.random.default_rng(0), (2, 4))
    sides = [(a, a, b), (a, b, a), (b, a, a)]
    array = sum(np.einsum("i,j,k->ijk", *side) for side in sides)
    cp = cp_als(array, 2, max_iter=300, init="random", tol=1e-12)
    assert "degenerate: two terms nearly cancel" in cp.info.reason


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_files_keep_complex_terms(dtype, library, tmp_path):
    array = of_rank((3, 4, 5), 2).astype(dtype)
    cp = cp_als(array, 2)
    given_phases = CP(cp.weights.astype(dtype) * 1j, cp.factors)
    save(tmp_path / "cp.safetensors", {"real": cp, "complex": given_phases})
    found = load(tmp_path / "cp.safetensors", library=library)
    for name, saved in (("real", cp), ("complex", given_phases)):
        np.testing.assert_array_equal(numpy_of(found[name].weights), saved.weights)
        for ours, theirs in zip(found[name].factors, saved.factors, strict=True):
            np.testing.assert_array_equal(numpy_of(ours), theirs)
    assert found["real"].info == cp.info


def test_tensorly_reads_complex_terms():
    cp = cp_als(of_rank((3, 4, 5), 2), 2)
    theirs = to_tensorly(cp)
    assert_close(tensorly.cp_to_tensor(theirs), cp.to_dense(), 100, float(cp.weights.sum()))
    again = from_tensorly(theirs)
    assert_close(again.to_dense(), cp.to_dense(), 100, float(cp.weights.sum()))


def test_gradients_flow_through_complex_terms():
    rng = np.random.default_rng(0)
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    factors = [torch.from_numpy(normal(rng, (n, 2))).requires_grad_() for n in (3, 4)]
    assert torch.autograd.gradcheck(lambda w, *f: CP(w, f).to_dense(), [weights, *factors])


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_extreme_scales(scale):
    array = of_rank((3, 4, 5), 2)
    assert cp_als(array * scale, 2, max_iter=200).error < 1e-6
