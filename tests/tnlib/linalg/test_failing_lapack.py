"""LAPACK fails inside every decomposition: the result is as good, and its info says so."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.arrays import numpy_of, relative, with_spectrum
from tests.tolerances import rounding
from tnlib import (
    allocate_ranks,
    cp_als,
    cp_als_batch,
    mpo_decompose,
    mpo_decompose_batch,
    rank_profile,
    suggest_dims,
    tt_round,
    tt_svd,
    tucker_hooi,
    tucker_hosvd,
)
from tnlib.arrays import backend

FUNCTIONS = ("svd", "svdvals", "eigh", "eigvalsh", "qr", "cholesky", "solve", "inv")
CUBE = np.sin(sum(np.ogrid[:5, :6, :7])) + 0.1 * np.random.default_rng(0).random((5, 6, 7))
MATRIX = with_spectrum(np.arange(1, 37.0) ** -1.5, 36, 48)
LARGE = with_spectrum(np.arange(1, 521.0) ** -1.0, 520, 530)
TERMS = np.random.default_rng(1).standard_normal((3, 5, 2))
RANK_TWO = np.einsum("ir,jr,kr->ijk", *TERMS)
TRAIN = tt_svd(CUBE, eps=1e-6)


@contextlib.contextmanager
def failing(monkeypatch, after, how, every=False):
    """LAPACK, as NumPy, SciPy and torch offer it, fails once from the k-th call on, or always."""
    calls = {"made": 0, "failed": 0}

    def fails(function):
        def replaced(*arguments, **options):
            calls["made"] += 1
            if calls["made"] <= after or (calls["failed"] and not every):
                return function(*arguments, **options)
            calls["failed"] += 1
            if how == "raise":
                torchs = torch.is_tensor(arguments[0])
                raise (torch.linalg.LinAlgError if torchs else np.linalg.LinAlgError)("converge")
            found = function(*arguments, **options)
            parts = found if isinstance(found, tuple) else (found,)
            parts = [p * float("nan") for p in parts]
            return tuple(parts) if isinstance(found, tuple) else parts[0]

        return replaced

    with monkeypatch.context() as patch:
        for module in (np.linalg, scipy.linalg, torch.linalg):
            for name in FUNCTIONS:
                if hasattr(module, name):
                    patch.setattr(module, name, fails(getattr(module, name)))
        yield calls


METHODS = ("svd", "gram", "krylov")
DIRECT = {
    **{f"tt_svd {m}": (lambda x, m=m: tt_svd(x, 3, method=m), CUBE) for m in METHODS},
    **{f"tt_svd eps {m}": (lambda x, m=m: tt_svd(x, eps=0.1, method=m), CUBE) for m in METHODS},
    "tt_svd refine": (lambda x: tt_svd(x, 2, refine=2), CUBE),
    "tt_svd max_params": (lambda x: tt_svd(x, max_params=60), CUBE),
    "mpo_decompose": (lambda x: mpo_decompose(x, 4, row_dims=(6, 6), col_dims=(6, 8)), MATRIX),
    "mpo_decompose large": (lambda x: mpo_decompose(x, 9), LARGE),
    **{f"hosvd {m}": (lambda x, m=m: tucker_hosvd(x, 2, method=m), CUBE) for m in METHODS},
    "hosvd max_params": (lambda x: tucker_hosvd(x, max_params=60), CUBE),
    **{f"hooi {m}": (lambda x, m=m: tucker_hooi(x, 2, method=m), CUBE) for m in METHODS},
    "hooi random": (lambda x: tucker_hooi(x, 2, init="random"), CUBE),
    "batch": (lambda x: mpo_decompose_batch(x[None], 4)[0], MATRIX),
    "batch tall": (lambda x: mpo_decompose_batch(x.mT[None], 4)[0], MATRIX),
}


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("name", sorted(DIRECT))
def test_one_failure_changes_nothing_but_the_info(name, after, how, monkeypatch):
    decompose, array = DIRECT[name]
    plain = decompose(array)
    assert plain.info.fallbacks == ()
    with failing(monkeypatch, after, how) as calls:
        found = decompose(array)
    assert bool(found.info.fallbacks) == bool(calls["failed"])
    assert after or calls["failed"] == 1
    assert found.ranks == plain.ranks
    assert found.error == pytest.approx(plain.error, abs=rounding("float64", 1000))


@pytest.mark.parametrize("name", sorted(set(DIRECT) - {"mpo_decompose large"}))
def test_without_any_lapack_at_all_the_result_is_as_good(name, monkeypatch):
    decompose, array = DIRECT[name]
    plain = decompose(array)
    with failing(monkeypatch, 0, "raise", every=True):
        found = decompose(array)
    assert any("jacobi" in text or "householder" in text for text in found.info.fallbacks)
    assert found.ranks == plain.ranks
    assert found.error == pytest.approx(plain.error, abs=rounding("float64", 1000))


@pytest.mark.parametrize("name", sorted(set(DIRECT) - {"mpo_decompose large"}))
def test_a_device_that_fails_hands_over_to_the_cpu(name, monkeypatch):
    decompose, array = DIRECT[name]
    # Tensors that are not taken for NumPy's, as on a GPU.
    monkeypatch.setattr(backend, "on_cpu", lambda array: isinstance(array, np.ndarray))
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    plain = decompose(tensor)
    assert plain.info.fallbacks == ()
    with failing(monkeypatch, 0, "raise"):
        found = decompose(tensor)
    assert found.info.fallbacks
    assert found.error == pytest.approx(plain.error, abs=rounding("float64", 1000))


CP = {
    "als": lambda x: cp_als(x, 2, method="als"),
    "lm": lambda x: cp_als(x, 2, method="lm"),
    "random": lambda x: cp_als(x, 2, init="random"),
    "compress": lambda x: cp_als(x, 2, compress=True),
    "batch": lambda x: cp_als_batch(x[None], 2)[0],
}


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("name", sorted(CP))
def test_cp_goes_on_by_another_driver(name, after, how, monkeypatch):
    plain = CP[name](RANK_TWO)
    with failing(monkeypatch, after, how) as calls:
        found = CP[name](RANK_TWO)
    assert found.error <= 1.1 * plain.error + 1e-6
    assert calls["failed"] <= 1
    assert bool(found.info.fallbacks) == bool(calls["failed"])
    assert relative(found.to_dense(), RANK_TWO) == pytest.approx(found.error, abs=1e-12)


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_rounding_and_gauges(after, how, monkeypatch):
    double = TRAIN + TRAIN
    with failing(monkeypatch, after, how) as calls:
        rounded = tt_round(double, eps=1e-5)
    assert bool(rounded.info.fallbacks) == bool(calls["failed"])
    assert rounded.ranks == TRAIN.ranks
    dense = TRAIN.to_dense()
    allowed = rounding("float64", 2000, np.abs(dense).max())
    for change in (lambda t: t.canonical(1), lambda t: t.balanced()):
        with failing(monkeypatch, after, how):
            same = numpy_of(change(TRAIN).to_dense())
        assert np.abs(same - dense).max() <= allowed


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("after", [0, 1])
def test_choosing(after, how, monkeypatch):
    def outcomes():
        yield [rank_profile(CUBE, [1, 2], format=name).estimate for name in ("tt", "tucker")]
        yield [rank_profile(MATRIX, [1, 2]).estimate]
        yield [allocate_ranks({"a": MATRIX, "b": MATRIX.T}, max_params=400).ranks]
        yield [str(suggest_dims(MATRIX, max_params=300, progress=False))]

    plain = list(outcomes())
    with failing(monkeypatch, after, how):
        found = list(outcomes())
    for ours, theirs in zip(found[:2], plain[:2], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=rounding("float64", 1000))
    assert found[2:] == plain[2:]
