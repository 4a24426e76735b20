"""One budget for many arrays, and modes for one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.arrays import with_spectrum
from tests.tolerances import rounding
from tnlib import allocate_ranks, mpo_decompose, suggest_dims, tt_svd


def weights(seed, decays, side=24):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((side, side)) * (1.0 + np.arange(side)) ** -decay for decay in decays
    ]


def squared(arrays, ranks, decompose):
    """Total squared error of the decompositions; none where an array is kept."""
    return math.fsum(
        (decompose(array, ranks[k]).error * np.linalg.norm(array)) ** 2
        for k, array in enumerate(arrays)
        if ranks[k] is not None
    )


@given(st.integers(0, 99), st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=1, max_size=4))
def test_matrices_get_what_is_best_for_all(seed, decays):
    arrays = weights(seed, decays)
    budget = 400 * len(arrays)
    found = allocate_ranks(arrays, budget, format="tt")
    assert sum(found.n_params.values()) <= budget
    chosen = squared(arrays, found.ranks, tt_svd)
    assert chosen <= squared(arrays, found.equal_ranks, tt_svd) * (1 + 1e-9)
    total = math.fsum(np.linalg.norm(array) ** 2 for array in arrays)
    assert math.sqrt(chosen / total) == pytest.approx(found.estimate, abs=1e-7)
    # The best ranks are known: the first singular value of each matrix, then the largest of all
    # others, since each costs the same. Keeping some dense can only be better.
    values = [np.linalg.svd(array, compute_uv=False) ** 2 for array in arrays]
    others = np.sort(np.concatenate([v[1:] for v in values]))
    left = len(others) - (budget // 48 - len(arrays))
    assert chosen <= math.fsum(others[:left]) + rounding(np.float64, 24**2, total)


@given(
    st.integers(0, 99),
    st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=1, max_size=4),
    st.sampled_from(["mpo", "tt", "tucker"]),
    st.integers(100, 700),
)
def test_no_array_gets_as_many_values_as_it_has_and_an_error(seed, decays, format, budget):
    arrays = weights(seed, decays)
    found = allocate_ranks(arrays, budget * len(arrays), format=format)
    assert sum(found.n_params.values()) <= budget * len(arrays)
    for name, ranks in found.ranks.items():
        assert (ranks is None) == (found.n_params[name] == arrays[name].size)
        assert found.n_params[name] <= arrays[name].size
        assert ranks is not None or found.upper[name] == 0.0


def test_what_needs_as_many_values_as_it_has_is_kept_dense():
    flat, steep = weights(0, [0.0, 6.0], side=64)
    found = allocate_ranks({"flat": flat, "steep": steep}, 64 * 64 + 200, format="tt")
    assert found.ranks["flat"] is None
    assert found.ranks["steep"] == (1,)
    assert found.estimate < found.equal_estimate
    assert "dense" in str(found).splitlines()[1]
    tiny = allocate_ranks([np.ones((2, 2)), steep], 600, format="tt")
    assert tiny.ranks[0] is None


def test_names_weights_and_relative_errors():
    first, second = weights(0, [1.0, 1.0])
    arrays = {"a": first, "b": 1000 * second}
    plain = allocate_ranks(arrays, 600, format="tt")
    assert plain.ranks["a"] == (1,)
    even = allocate_ranks(arrays, 600, format="tt", relative=True)
    assert abs(even.ranks["a"][0] - even.ranks["b"][0]) <= 2
    for_a = allocate_ranks(arrays, 600, format="tt", relative=True, weights=(1.0, 0.0))
    assert for_a.ranks["b"] == (1,)
    lines = str(even).splitlines()
    assert [line.split()[0] for line in lines] == ["array", "a", "b", "total"]


def test_ranks_can_be_decomposed_in_every_format():
    arrays = [torch.from_numpy(array) for array in weights(3, [0.0, 1.0])]
    found = allocate_ranks(arrays, 500, progress=False)
    for k, array in enumerate(arrays):
        assert found.ranks[k] is not None
        mpo = mpo_decompose(array, found.ranks[k])
        assert mpo.n_params <= found.n_params[k]
        assert mpo.error <= found.upper[k] + 1e-7
    tucker = allocate_ranks(arrays, 700, format="tucker")
    assert sum(tucker.n_params.values()) <= 700


def test_everything_fits_into_a_large_budget():
    arrays = weights(3, [0.0, 1.0])
    assert allocate_ranks(arrays, 10**6, format="tt").estimate == 0.0


def test_the_right_modes_win():
    rng = np.random.default_rng(0)
    matrix = np.kron(rng.standard_normal((3, 8)), rng.standard_normal((5, 4)))
    found = suggest_dims(matrix, max_params=60, orders=(2,))
    assert (found[0].row_dims, found[0].col_dims) == ((3, 5), (8, 4))
    assert found[0].error < 1e-7
    fitting = [one for one in found if one.n_params <= 60]
    assert fitting == list(found[:-1])
    assert fitting[-1].error > 0.1
    assert [one.error for one in fitting] == sorted(one.error for one in fitting)
    assert str(found).splitlines()[-1] == "best within 60 values: mpo"


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (13, 17), (1, 60), (1, 1)])
def test_low_rank_and_dense_stand_beside_the_shapes(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    for options in ({}, {"eps": 0.1}, {"orders": (3,)}, {"max_params": shape[0] * shape[1]}):
        found = suggest_dims(matrix, **options)
        assert {"low rank", "dense"} <= {one.kind for one in found}
        dense = next(one for one in found if one.kind == "dense")
        assert (dense.n_params, dense.error) == (matrix.size, 0.0)
        assert len(str(found).splitlines()) == len(found) + 2


def test_low_rank_is_the_truncated_svd_and_wins_where_it_should():
    matrix = with_spectrum(0.5 ** np.arange(12), 24, 36)
    found = suggest_dims(matrix, max_params=240)
    assert found[0].kind == "low rank"
    values = 0.5 ** np.arange(12)
    tail = np.linalg.norm(values[4:]) / np.linalg.norm(values)
    assert found[0].error == pytest.approx(tail, abs=rounding(np.float64, 24 * 36))


def test_dense_wins_where_nothing_has_fewer_values():
    matrix = np.random.default_rng(0).standard_normal((16, 24))
    found = suggest_dims(matrix, eps=0.01)
    assert found[0].kind == "dense"
    assert str(found).splitlines()[-1] == "best: dense"


def test_a_time_limit_leaves_shapes_untried_and_says_so():
    found = suggest_dims(np.random.default_rng(0).standard_normal((24, 36)), time_limit=0)
    assert {one.kind for one in found} == {"low rank", "dense"}
    assert found.untried > 0
    assert f"{found.untried} shapes were not tried" in str(found)


def test_scales_and_zeros_beside_each_other():
    first, second = weights(5, [0.5, 0.5])
    plain = allocate_ranks([first, second], 700, format="tt")
    tiny = allocate_ranks([first * 1e-200, second * 1e-200, 0 * first], 700 + 48, format="tt")
    assert (tiny.ranks[0], tiny.ranks[1]) == (plain.ranks[0], plain.ranks[1])
    heavy = allocate_ranks([first, second], 700, format="tt", weights=[1e308, 1e308])
    assert heavy.ranks == plain.ranks


def test_modes_for_a_tolerance():
    matrix = np.random.default_rng(0).standard_normal((24, 24))
    found = suggest_dims(matrix, eps=0.3)
    assert [one.n_params for one in found] == sorted(one.n_params for one in found)
    for one in found:
        assert one.error <= 0.3
        again = mpo_decompose(matrix, eps=0.3, row_dims=one.row_dims, col_dims=one.col_dims)
        assert (again.ranks, again.error) == (one.ranks, one.error)
    assert {len(one.row_dims) for one in found} == {1, 2, 3, 4}


SQUARE = np.ones((4, 4))
BAD = [
    (lambda: allocate_ranks([], 100), ValueError, "arrays is empty"),
    (lambda: allocate_ranks(3, 100), TypeError, "mapping or a sequence"),
    (lambda: allocate_ranks([SQUARE] * 2, 15), ValueError, "ranks of 1 have 16"),
    (lambda: allocate_ranks([SQUARE], 0), ValueError, "max_params must be at least 1"),
    (lambda: allocate_ranks([SQUARE], 99, weights=[1, 2]), ValueError, "as many as the arrays"),
    (lambda: allocate_ranks([SQUARE], 99, weights=[-1]), ValueError, "at least 0"),
    (lambda: allocate_ranks([SQUARE], 99, format="cp"), ValueError, "no spectrum"),
    (lambda: allocate_ranks([np.ones((2, 2, 2))], 99), ValueError, "must be a matrix"),
    (
        lambda: allocate_ranks({"b": np.ones(3)}, 99),
        ValueError,
        r"arrays\['b'\]: W must be",
    ),
    (lambda: suggest_dims(np.ones(4)), ValueError, "must be a matrix"),
    (lambda: suggest_dims(SQUARE, max_params=9, eps=0.1), ValueError, "not both"),
    (lambda: suggest_dims(SQUARE, orders=()), ValueError, "orders must not be empty"),
    (
        lambda: suggest_dims(SQUARE, orders=(0,)),
        ValueError,
        "every entry of orders must be at least 1",
    ),
    (lambda: suggest_dims(SQUARE, orders=2), TypeError, "orders must be a sequence"),
    (lambda: suggest_dims(SQUARE, max_params="9"), TypeError, "must be an integer"),
    (lambda: allocate_ranks([SQUARE], 99, weights=3), TypeError, "weights must be a sequence"),
    (lambda: allocate_ranks([SQUARE], 9, relative="no"), TypeError, "relative must be True"),
    (lambda: suggest_dims(SQUARE, max_params=3), ValueError, "smallest of these shapes has 8"),
    (lambda: suggest_dims(SQUARE, eps=2), ValueError, "between 0 and 1"),
    (lambda: suggest_dims(SQUARE, time_limit=-1), ValueError, "time_limit must be a finite"),
    (lambda: suggest_dims(SQUARE, progress="no"), TypeError, "progress must be True, False"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
