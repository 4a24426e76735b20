"""Truncated bases: every kernel is orthonormal, projects, and counts what it discards."""

from __future__ import annotations

import numpy as np
import pytest

from tests.arrays import LIBRARIES, numpy_of, with_spectrum
from tests.tolerances import rounding
from tnlib import mpo_decompose
from tnlib.arrays import backend
from tnlib.linalg.krylov import SLACK
from tnlib.linalg.truncated_basis import truncated_basis

SHAPES = [(40, 40), (30, 200), (200, 30), (5, 64), (64, 5), (1, 9), (9, 1)]


def basis_of(matrix, method, max_rank=None, allowed=None, seed=0):
    return truncated_basis(
        matrix,
        energy=backend.energy(matrix),
        max_rank=max_rank,
        allowed=allowed,
        method=method,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize("method", ["svd", "gram", "krylov"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_basis_is_orthonormal_and_the_rest_is_projected(library, method, shape, dtype):
    side = min(shape)
    matrix = with_spectrum(np.arange(1.0, side + 1) ** -0.7, *shape)
    if np.issubdtype(dtype, np.complexfloating):
        matrix = matrix * np.exp(1j * np.arange(shape[1]))
    matrix = LIBRARIES[library](matrix.astype(dtype))
    basis = basis_of(matrix, method, max_rank=max(1, side // 3))
    vectors, data = numpy_of(basis.vectors), numpy_of(matrix)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(vectors.shape[1]), atol=tolerance)
    np.testing.assert_allclose(numpy_of(basis.rest), vectors.conj().T @ data, atol=tolerance)
    left = np.linalg.norm(data - vectors @ numpy_of(basis.rest)) ** 2
    assert basis.discarded == pytest.approx(left, rel=1e-4, abs=10 * tolerance)


@pytest.mark.parametrize("method", ["svd", "gram", "krylov"])
def test_discarded_energy_is_within_one_per_mille_of_the_least(method):
    values = np.arange(1, 601.0) ** -0.7
    matrix = with_spectrum(values, 600, 700)
    basis = basis_of(matrix, method, max_rank=32)
    assert basis.kernel == method
    assert basis.discarded <= 1.002 * np.sum(values[32:] ** 2)


@pytest.mark.parametrize("method", ["svd", "gram", "krylov"])
def test_a_tolerance_gives_the_smallest_rank(method):
    values = 2.0 ** -np.arange(40)
    matrix = with_spectrum(values, 50, 60)
    allowed = np.sum(values[10:] ** 2) * 1.0001
    basis = basis_of(matrix, method, allowed=allowed)
    assert basis.vectors.shape[1] == 10
    assert basis.discarded <= allowed


def test_auto_takes_krylov_for_low_ranks_and_gram_for_high_ones():
    matrix = with_spectrum(np.arange(1, 513.0) ** -0.7, 512, 640).astype(np.float32)
    assert basis_of(matrix, "auto", max_rank=16).kernel == "krylov"
    assert basis_of(matrix, "auto", max_rank=300).kernel == "gram"
    assert basis_of(matrix, "auto", max_rank=512).kernel == "identity"


def test_auto_falls_back_to_gram_when_the_krylov_space_outgrows_its_share():
    matrix = np.eye(512, dtype=np.float32)
    basis = basis_of(matrix, "auto", allowed=0.3 * 512)
    assert basis.kernel == "gram"
    assert basis.vectors.shape[1] == pytest.approx(0.7 * 512, abs=1)


def test_auto_switches_to_svd_where_squares_do_not_resolve():
    values = np.logspace(0, -12, 60)
    matrix = with_spectrum(values, 60, 90)
    basis = basis_of(matrix, "auto", max_rank=50)
    assert basis.kernel == "svd"
    assert basis.discarded == pytest.approx(np.sum(values[50:] ** 2), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_krylov_of_an_exactly_low_rank_matrix_stops_at_its_rank(seed, dtype):
    matrix = with_spectrum([3.0, 2.0, 1.0], 600, 800, seed).astype(dtype)
    basis = basis_of(matrix, "krylov", max_rank=40, seed=seed)
    assert basis.vectors.shape[1] == 3
    residual = matrix - basis.vectors @ basis.rest
    limit = rounding(dtype, operations=50, size=np.linalg.norm(matrix))
    assert np.linalg.norm(residual) <= limit


def test_the_start_block_decides_and_is_seeded():
    matrix = np.random.default_rng(3).standard_normal((600, 600))
    one, two = (basis_of(matrix, "krylov", max_rank=8) for _ in range(2))
    np.testing.assert_array_equal(one.vectors, two.vectors)
    other = basis_of(matrix, "krylov", max_rank=8, seed=1)
    assert not np.array_equal(one.vectors, other.vectors)


STEEP = {
    "3^-k": 3.0 ** -np.arange(520),
    "10^(-k/2)": 10.0 ** (-np.arange(520) / 2),
    "k^-8": np.arange(1, 521.0) ** -8,
    "k^-4": np.arange(1, 521.0) ** -4,
    "1, 1e-4 x 40": np.r_[1.0, [1e-4] * 40, np.zeros(479)],
    "1, 1e-6 x 40": np.r_[1.0, [1e-6] * 40, np.zeros(479)],
}


@pytest.mark.parametrize("spectrum", sorted(STEEP))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("method", ["auto", "krylov"])
def test_steep_spectra_are_as_good_as_the_svd_to_rounding(spectrum, dtype, method):
    values = STEEP[spectrum]
    matrix = with_spectrum(values, 520, 600).astype(dtype)
    basis = basis_of(matrix, method, max_rank=48)
    u = np.finfo(dtype).eps / 2
    best = np.linalg.norm(values[48:]) / np.linalg.norm(values)
    residual = np.linalg.norm(matrix - basis.vectors @ basis.rest) / np.linalg.norm(matrix)
    assert residual <= 1.001 * best + 50 * u
    vectors = basis.vectors.astype(np.complex128)
    overlap = vectors.conj().T @ vectors
    np.testing.assert_allclose(overlap, np.eye(overlap.shape[0]), atol=50 * u)


REPEATED = {
    "60 equal, then a flat tail": np.r_[np.ones(60), np.full(460, 0.01)],
    "90 equal": np.r_[np.ones(90), np.full(430, 0.1)],
    "plateaus of 40": np.repeat(2.0 ** -np.arange(13), 40),
    "one more than a block": np.r_[np.ones(25), np.full(495, 0.02)],
    "1 and 40 small": np.r_[1.0, np.full(40, 0.05), np.full(479, 1e-4)],
}


@pytest.mark.parametrize("spectrum", sorted(REPEATED))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["auto", "krylov"])
def test_equal_singular_values_are_all_found(spectrum, dtype, method):
    values = REPEATED[spectrum]
    matrix = with_spectrum(values, 520, 600).astype(dtype)
    basis = basis_of(matrix, method, max_rank=48)
    residual = np.linalg.norm(matrix - basis.vectors @ basis.rest)
    assert residual <= 1.001 * np.linalg.norm(values[48:])
    resolved = np.finfo(dtype).eps * np.sum(values**2)
    assert basis.discarded == pytest.approx(residual**2, rel=1e-3, abs=resolved)


@pytest.mark.parametrize("ratio", [0.9, 0.8, 0.7])
def test_single_precision_below_what_its_norms_resolve(ratio):
    values = ratio ** np.arange(1024.0)
    matrix = with_spectrum(values, 1024, 1024).astype(np.float32)
    for rank in (32, 64, 96, 127):
        basis = basis_of(matrix, "auto", max_rank=rank)
        residual = np.linalg.norm(matrix - basis.vectors @ basis.rest)
        best = np.linalg.norm(values[rank:])
        # Two products with sums of 1024 terms, whose roundings add up like their root in norm.
        resolved = rounding(np.float32, np.sqrt(1024), np.linalg.norm(values))
        assert residual <= 1.001 * best + resolved


def hard_spectra(size):
    """Flat, clustered, repeated and slowly decaying singular values, and one above all others."""
    k = np.arange(1, size + 1.0)
    jitter = 1 + 1e-3 * np.random.default_rng(5).standard_normal(size)
    return {
        "flat": np.ones(size),
        "k^-0.3": k**-0.3,
        "root of linear": np.sqrt(1 - k / (size + 1)),
        "one spike": np.where(k == 1, 1e3, 1.0),
        "plateau 1.1": np.where(k <= 40, 1.1, 1.0),
        "plateau 1.5": np.where(k <= 40, 1.5, 1.0),
        "clusters of 30": 1.1 ** -((k - 1) // 30),
        "near clusters": np.sort(1.2 ** -((k - 1) // 20) * jitter)[::-1],
        "threes": np.repeat(np.linspace(2, 1, size // 3 + 1), 3)[:size],
    }


@pytest.mark.parametrize("spectrum", sorted(hard_spectra(520)))
def test_the_krylov_kernel_keeps_its_stated_bound(spectrum):
    # The start block is Gaussian, so a diagonal matrix stands for all of these singular values.
    values = hard_spectra(520)[spectrum]
    for rank, dtype in ((10, np.float32), (41, np.float64)):
        matrix = np.zeros((520, 560), dtype)
        matrix[np.arange(520), np.arange(520)] = values
        basis = basis_of(matrix, "auto", max_rank=rank)
        left = np.linalg.norm(matrix.astype(np.float64) - basis.vectors @ basis.rest)
        least = np.linalg.norm(values[rank:])
        slack = SLACK if basis.kernel == "krylov" else 0.0
        assert left <= (1 + slack) * least + rounding(dtype, 50, np.linalg.norm(values))


def test_the_bound_of_a_train_holds_with_its_slack():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((600, 640))
    operator = mpo_decompose(matrix, 12, row_dims=(600, 1), col_dims=(1, 640))
    assert operator.info.kernels == ("krylov",)
    values = np.linalg.svd(matrix, compute_uv=False)
    best = np.linalg.norm(values[12:]) / np.linalg.norm(values)
    assert best <= operator.error <= (1 + SLACK) * best
