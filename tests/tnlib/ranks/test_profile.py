"""Profiles bound what decompositions lose; budgets are kept and spent well."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tnlib
from tests.arrays import LIBRARIES, matrices, tensors, with_spectrum
from tests.tolerances import rounding
from tnlib import cp_als, mpo_decompose, rank_profile, tt_round, tt_svd, tucker_hooi, tucker_hosvd

DECOMPOSE = {"mpo": mpo_decompose, "tt": tt_svd, "tucker": tucker_hosvd}


def inner(result):
    """Ranks without the outer ones of a train."""
    return result.ranks if isinstance(result, tnlib.Tucker) else result.ranks[1:-1]


@given(tensors(), st.sampled_from(["tt", "tucker"]), st.sampled_from(sorted(LIBRARIES)))
def test_every_point_bounds_the_decomposition(array, format, library):
    if array.ndim < 2:
        array = array.reshape(1, -1)
    given = LIBRARIES[library](array)
    profile = rank_profile(given, format=format, points=4)
    assert list(profile.n_params) == sorted(profile.n_params)
    slack = 1e-7
    for ranks, size, low, high in zip(
        profile.ranks, profile.n_params, profile.lower, profile.upper, strict=True
    ):
        result = DECOMPOSE[format](given, ranks, method="svd")
        assert result.n_params <= size
        assert low - slack <= result.error <= high + slack
    for low, guess, high in zip(profile.lower, profile.estimate, profile.upper, strict=True):
        assert low - slack <= guess <= high + slack


@given(
    st.lists(st.integers(2, 6), min_size=2, max_size=4),
    st.floats(0.2, 0.9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["tt", "tucker"]),
)
@settings(max_examples=30)
def test_every_point_bounds_single_precision(shape, ratio, seed, format):
    steps = np.indices(shape).sum(axis=0)
    noise = np.random.default_rng(seed).standard_normal(shape)
    array = (noise * ratio ** (3 * steps)).astype(np.float32)
    profile = rank_profile(array, format=format, points=6)
    for ranks, low, high in zip(profile.ranks, profile.lower, profile.upper, strict=True):
        assert low <= DECOMPOSE[format](array, ranks).error <= high


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.6])
def test_ranks_for_a_tolerance_keep_it_in_single_precision(ratio):
    array = with_spectrum(ratio ** np.arange(64.0), 64, 64).astype(np.float32)
    profile = rank_profile(array, range(1, 30), format="tt")
    for eps in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        assert tt_svd(array, profile.best_ranks(eps=eps)).error <= eps


@given(matrices(), st.integers(1, 3))
def test_equal_ranks_of_an_operator(case, rank):
    matrix, rows, columns = case
    options = {"row_dims": rows, "col_dims": columns}
    profile = rank_profile(matrix, [rank], **options)
    result = mpo_decompose(matrix, rank, method="svd", **options)
    assert all(a >= b for a, b in zip(profile.ranks[0], inner(result), strict=True))
    assert profile.n_params[0] >= result.n_params
    assert profile.lower[0] - 1e-7 <= result.error <= profile.upper[0] + 1e-7


@given(tensors(), st.sampled_from(["tt", "tucker"]), st.floats(0, 1))
def test_a_budget_is_kept_and_no_worse_than_equal_ranks(array, format, share):
    if array.ndim < 2:
        array = array.reshape(1, -1)
    profile = rank_profile(array, format=format, points=2)
    low, high = profile.n_params[0], array.size
    budget = max(low, int(low + share * (high - low)))
    result = DECOMPOSE[format](array, max_params=budget, method="svd")
    assert result.n_params <= budget
    spectra = profile.spectra
    chosen = profile.best_ranks(max_params=budget)
    assert result.error <= spectra.bounds(chosen)[1] + 1e-7
    level = [
        spectra.count.clipped(tuple(min(rank, limit) for limit in spectra.limits))
        for rank in range(1, max(spectra.limits) + 1)
    ]
    fitting = [spectra.loss(ranks) for ranks in level if spectra.count.values(ranks) <= budget]
    assert spectra.loss(chosen) <= min(fitting) + 1e-12


@given(tensors(), st.floats(0, 1))
def test_the_choice_is_close_to_the_best_of_all(array, share):
    if array.ndim < 2:
        array = array.reshape(1, -1)
    profile = rank_profile(array, format="tt", points=2, max_params=10 * array.size)
    spectra = profile.spectra
    every = [
        ranks
        for ranks in itertools.product(*(range(1, limit + 1) for limit in spectra.limits))
        if spectra.count.clipped(ranks) == ranks
    ]
    sizes = sorted({spectra.count.values(ranks) for ranks in every})
    budget = sizes[int(share * (len(sizes) - 1))]
    best = min(spectra.loss(r) for r in every if spectra.count.values(r) <= budget)
    chosen = profile.best_ranks(max_params=budget)
    assert spectra.count.values(chosen) <= budget
    # No worse than the best of all with half the values.
    half = [spectra.loss(r) for r in every if spectra.count.values(r) <= budget / 2]
    assert best - 1e-12 <= spectra.loss(chosen) <= min(half, default=1.0) + 1e-12


@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize("format", ["mpo", "tt", "tucker"])
def test_ranks_eps_and_budget_together(format, library):
    rng = np.random.default_rng(0)
    array = LIBRARIES[library](rng.standard_normal((24, 36) if format == "mpo" else (6, 7, 8)))
    decompose = DECOMPOSE[format]
    options = {"row_dims": (2, 3, 4), "col_dims": (3, 3, 4)} if format == "mpo" else {}
    both = decompose(array, 3, max_params=150, **options)
    assert both.n_params <= 150
    assert max(inner(both)) <= 3
    loose = decompose(array, eps=0.9, max_params=10**6, **options)
    assert loose.error <= 0.9
    assert loose.n_params <= decompose(array, eps=0.9, **options).n_params
    whole = decompose(array, max_params=10**6, **options)
    assert whole.error < 1e-12


def test_rounding_to_a_budget():
    rng = np.random.default_rng(1)
    train = tt_svd(rng.standard_normal((5, 6, 7, 4)), eps=1e-12)
    for budget in (40, 100, 300):
        rounded = tt_round(train, max_params=budget)
        assert rounded.n_params <= budget
        again = tt_svd(train.to_dense(), max_params=budget)
        assert rounded.error == pytest.approx(again.error, rel=1e-6)
    assert tt_round(train, max_params=10**6).n_params == train.n_params


def test_budgets_of_cp_and_hooi():
    array = np.random.default_rng(2).standard_normal((6, 7, 8))
    assert cp_als(array, max_params=100).rank == 100 // 22
    assert cp_als(array, 2, max_params=100).rank == 2
    assert tucker_hooi(array, max_params=100).n_params <= 100
    hosvd = tucker_hosvd(array, max_params=100)
    assert tucker_hooi(array, max_params=100).error <= hosvd.error + 1e-12


def test_a_train_of_a_matrix_is_its_truncated_svd():
    matrix = np.random.default_rng(3).standard_normal((30, 20))
    values = np.linalg.svd(matrix, compute_uv=False)
    profile = rank_profile(matrix, [1, 5, 20], format="tt")
    for (rank,), low, high in zip(profile.ranks, profile.lower, profile.upper, strict=True):
        expected = math.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
        assert low == pytest.approx(expected, abs=1e-7)
        assert high == pytest.approx(expected, abs=1e-7)


def test_the_profile_answers_for_a_tolerance():
    matrix = np.random.default_rng(3).standard_normal((64, 64)) @ np.diag(0.8 ** np.arange(64))
    profile = rank_profile(matrix)
    ranks = profile.best_ranks(eps=0.2)
    assert mpo_decompose(matrix, ranks).error <= 0.2
    with pytest.raises(ValueError, match="least upper bound"):
        rank_profile(matrix, [1]).best_ranks(eps=0.01)
    with pytest.raises(ValueError, match="either"):
        profile.best_ranks()


@given(st.integers(0, 99), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from(sorted(LIBRARIES)))
def test_the_low_rank_beside_an_operator_is_the_truncated_svd(seed, decay, library):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((12, 18)) * (1.0 + np.arange(18)) ** -decay
    profile = rank_profile(LIBRARIES[library](matrix), points=6)
    values = np.linalg.svd(matrix, compute_uv=False)
    for size, low in zip(profile.n_params, profile.low_rank, strict=True):
        kept = size // 30
        tail = np.linalg.norm(values[kept:]) / np.linalg.norm(values)
        # Energies are squares: what is below the root of a roundoff is not resolved.
        assert low == pytest.approx(tail, abs=rounding(np.float64, 12 * 18) ** 0.5)
    wins = sum(a < b for a, b in zip(profile.low_rank, profile.estimate, strict=True))
    assert str(profile).splitlines()[-1] == f"low rank is better at {wins} of {len(profile)} points"
    assert str(profile).splitlines()[-2].startswith("dense")


def test_only_an_operator_of_several_cores_has_a_low_rank_beside_it():
    matrix = np.random.default_rng(0).standard_normal((12, 18))
    assert rank_profile(matrix, format="tt").low_rank is None
    assert rank_profile(matrix, row_dims=(12,), col_dims=(18,)).low_rank is None
    assert rank_profile(matrix, format="tucker").low_rank is None
    assert rank_profile(matrix, [1]).low_rank is not None


@pytest.mark.parametrize("format", ["mpo", "tt", "tucker"])
def test_dense_is_the_answer_where_no_ranks_have_fewer_values(format):
    noise = np.random.default_rng(0).standard_normal((48, 144))
    profile = rank_profile(noise, format=format)
    with pytest.raises(ValueError, match=r"dense is the answer.*the 6912 values"):
        profile.best_ranks(eps=0.1)
    # Ranks that were not looked at may still be the answer.
    steep = with_spectrum(0.5 ** np.arange(48), 48, 144)
    with pytest.raises(ValueError, match="larger ranks"):
        rank_profile(steep, [1], format="tt").best_ranks(eps=0.1)


def test_a_large_spectrum_is_found_in_part():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((600, 600)))[0] for _ in range(2))
    matrix = (left * 0.9 ** np.arange(600)) @ right
    part = rank_profile(matrix, [8], format="tt")
    whole = rank_profile(matrix, [8, 600], format="tt")
    assert part.upper[0] == pytest.approx(whole.upper[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_and_parameters(dtype):
    weight = torch.nn.Linear(48, 64).weight.detach().to(dtype)
    profile = rank_profile(weight, points=5)
    result = mpo_decompose(weight, profile.ranks[2], dtype="float32")
    assert profile.lower[2] - 1e-3 <= result.error <= profile.upper[2] + 1e-3


def test_rounding_is_part_of_the_upper_bound():
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30)))
    for dtype in (torch.bfloat16, torch.float32):
        given = low.to(dtype)
        profile = rank_profile(given, [2, 5, 30], format="tt")
        for ranks, high in zip(profile.ranks, profile.upper, strict=True):
            assert tt_svd(given, ranks).error <= high


def test_a_tolerance_is_met_where_the_budget_alone_meets_it():
    rng = np.random.default_rng(24)
    for _ in range(15):
        shape = tuple(int(n) for n in rng.integers(2, 7, 3))
        array = rng.standard_normal(shape)
        for decompose in (tt_svd, tucker_hosvd):
            plain = decompose(array, max_params=array.size * 2 // 3 + sum(shape), method="svd")
            if 1e-6 < plain.error < 0.99:
                eps = plain.error * (1 + 1e-6)
                limit = array.size * 2 // 3 + sum(shape)
                both = decompose(array, max_params=limit, eps=eps, method="svd")
                assert both.error <= eps
                assert both.n_params <= limit


def test_ranks_that_grow_only_together():
    array = np.einsum("ik,j->ijk", np.eye(3), np.ones(8))
    assert tucker_hosvd(array, max_params=24).error < 0.6
    assert cp_als(np.random.default_rng(0).standard_normal((3, 3, 3)), max_params=3000).rank == 9


def test_zeros_and_scales():
    assert rank_profile(np.zeros((8, 8)), points=3).upper[-1] == 0.0
    assert mpo_decompose(np.zeros((8, 8)), max_params=20).n_params <= 20
    matrix = np.random.default_rng(0).standard_normal((16, 16))
    plain, huge = (rank_profile(s * matrix, [2, 3]) for s in (1.0, 1e200))
    assert plain.upper == pytest.approx(huge.upper)


def test_the_picture_has_the_points():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    profile = rank_profile(np.random.default_rng(0).standard_normal((16, 16)), points=5)
    axes = profile.plot(label="weight")
    line, beside = axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), profile.estimate)
    np.testing.assert_allclose(beside.get_ydata(), profile.low_rank)
    np.testing.assert_allclose(line.get_xdata(), np.array(profile.n_params) / 256)
    assert profile.plot(axes) is axes
    matplotlib.pyplot.close("all")


SQUARE, EYE = np.ones((4, 4)), np.eye(8)
BAD = [
    (lambda: rank_profile(SQUARE, format="cp"), ValueError, "no spectrum"),
    (lambda: rank_profile(np.ones((2, 2, 2))), ValueError, "must be a matrix"),
    (lambda: rank_profile(np.ones(4), format="tt"), ValueError, "at least two axes"),
    (lambda: rank_profile(SQUARE, format="tt", row_dims=(2, 2)), ValueError, "for format='mpo'"),
    (lambda: rank_profile(SQUARE, []), ValueError, "ranks is empty"),
    (lambda: rank_profile(SQUARE, 5), TypeError, "sequence of ranks"),
    (lambda: rank_profile(SQUARE, [1], max_params=9), ValueError, "not both"),
    (lambda: rank_profile(SQUARE, max_params=7), ValueError, "ranks of 1 have 8"),
    (lambda: rank_profile(EYE, [1]).best_ranks(max_params=64), ValueError, "knows no larger ranks"),
    (lambda: rank_profile(SQUARE, [0]), ValueError, "at least 1"),
    (lambda: rank_profile(SQUARE, [0.5]), TypeError, "for a tolerance use eps="),
    (lambda: rank_profile(SQUARE, points=0), ValueError, "points must be at least 1"),
    (lambda: rank_profile(SQUARE * np.nan), ValueError, "nan or inf"),
    (lambda: rank_profile([[1.0]]), TypeError, "NumPy array or a torch tensor"),
    (lambda: mpo_decompose(SQUARE, max_params=7), ValueError, "too small: ranks of 1 have 8"),
    (lambda: tt_svd(SQUARE, max_params=0), ValueError, "max_params must be at least 1"),
    (lambda: tt_svd(SQUARE, max_params=9.5), TypeError, "must be an integer"),
    (lambda: tucker_hosvd(SQUARE, max_params=8), ValueError, "ranks of 1 have 9"),
    (lambda: tucker_hooi(SQUARE, max_params=8), ValueError, "ranks of 1 have 9"),
    (lambda: tt_round(tt_svd(SQUARE, 1), max_params=7), ValueError, "ranks of 1 have 8"),
    (lambda: cp_als(SQUARE, max_params=8), ValueError, "one term already has 9"),
    (lambda: cp_als(SQUARE), ValueError, "give rank=.* or max_params="),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
