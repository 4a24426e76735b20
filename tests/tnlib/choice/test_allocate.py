"""One budget for many arrays, and modes for one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnlib import allocate_ranks, mpo_decompose, suggest_dims, tt_svd


def weights(seed, decays, side=24):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((side, side)) * (1.0 + np.arange(side)) ** -decay for decay in decays
    ]


def squared(arrays, ranks, decompose):
    """Total squared error of the decompositions."""
    return math.fsum(
        (decompose(array, ranks[k]).error * np.linalg.norm(array)) ** 2
        for k, array in enumerate(arrays)
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
    # For matrices the best is known: the first singular value of each, then the largest of all
    # others, since each costs the same.
    values = [np.linalg.svd(array, compute_uv=False) ** 2 for array in arrays]
    others = np.sort(np.concatenate([v[1:] for v in values]))
    left = len(others) - (budget // 48 - len(arrays))
    assert chosen == pytest.approx(math.fsum(others[:left]), rel=1e-9)


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
    found = allocate_ranks(arrays, 700, progress=False)
    for k, array in enumerate(arrays):
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
    assert found[-1].error > 0.1
    assert [one.error for one in found] == sorted(one.error for one in found)
    assert all(one.n_params <= 60 for one in found)


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (13, 17), (1, 60)])
def test_modes_without_a_budget(shape):
    found = suggest_dims(np.random.default_rng(0).standard_normal(shape))
    assert found[0].error <= found[-1].error


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
    assert {len(one.row_dims) for one in found} == {2, 3, 4}


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
    (lambda: suggest_dims(SQUARE, max_params=3), ValueError, "smallest of these shapes has 8"),
    (lambda: suggest_dims(SQUARE, eps=2), ValueError, "between 0 and 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
