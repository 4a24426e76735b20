"""One mode far longer than the others: memory is that of the data, not the square of the mode."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tnlib import (
    Tucker,
    mpo_decompose,
    mpo_decompose_batch,
    rank_profile,
    tt_round,
    tt_svd,
    tucker_hooi,
    tucker_hosvd,
)

LONG, SHORT = 1500, 4
METHODS = ("auto", "svd", "gram", "krylov")


def peak(function):
    """Bytes that NumPy holds at once while `function` runs, of those that it asked for."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_memory_grows_with_the_data(position):
    shape = [SHORT, SHORT]
    shape.insert(position, LONG)
    array = np.random.default_rng(0).standard_normal(shape)
    ranks = tuple(3 if size == SHORT else size for size in shape)
    matrix = np.moveaxis(array, position, 0).reshape(LONG, -1)
    modes = {"row_dims": (LONG, 1), "col_dims": (1, SHORT * SHORT)}
    train = tt_svd(array, SHORT * SHORT)
    rng = np.random.default_rng(1)
    init = Tucker(np.ones((2,) * 3), tuple(rng.standard_normal((n, 2)) for n in shape))
    mask = rng.random(shape) < 0.9
    calls = {
        "hooi random": lambda: tucker_hooi(array, ranks, init="random", max_iter=2),
        "hooi given": lambda: tucker_hooi(array, ranks, init=init, max_iter=2),
        "hooi fixed": lambda: tucker_hooi(array, ranks, init=init, fixed=(position,), max_iter=2),
        "hooi masked": lambda: tucker_hooi(array, ranks, init="random", mask=mask, max_iter=2),
        "hooi partial": lambda: tucker_hooi(array, 3, modes=((position + 1) % 3,), max_iter=2),
        "hosvd partial": lambda: tucker_hosvd(array, 3, modes=((position + 1) % 3,)),
        "hosvd max_params": lambda: tucker_hosvd(array, max_params=array.size // 3),
        "tt max_params": lambda: tt_svd(array, max_params=array.size // 3),
        "profile tt": lambda: rank_profile(array, [1, LONG], format="tt"),
        "profile tucker": lambda: rank_profile(array, [1, LONG], format="tucker"),
        "profile mpo": lambda: rank_profile(matrix, [1, LONG], **modes),
        "batch": lambda: mpo_decompose_batch(
            matrix[None, :, :8], 4, row_dims=(LONG, 1), col_dims=(1, 8)
        ),
        "round": lambda: tt_round(train, 3),
    }
    for method in METHODS:
        calls[f"hosvd {method}"] = lambda m=method: tucker_hosvd(array, ranks, method=m)
        calls[f"hosvd eps {method}"] = lambda m=method: tucker_hosvd(array, eps=0.1, method=m)
        calls[f"tt {method}"] = lambda m=method: tt_svd(array, LONG, method=m)
        calls[f"tt eps {method}"] = lambda m=method: tt_svd(array, eps=0.1, method=m)
        calls[f"mpo {method}"] = lambda m=method: mpo_decompose(matrix, LONG, method=m, **modes)
    # A few working copies of the data, where one square of the long mode is 94.
    most = {name: peak(call) / array.nbytes for name, call in calls.items()}
    assert {name: used for name, used in most.items() if used > 16} == {}


@pytest.mark.parametrize("init", ["hosvd", "random"])
def test_ranks_beyond_what_the_other_modes_allow_are_not_reached(init):
    array = np.random.default_rng(0).standard_normal((LONG, 3, 2))
    tucker = tucker_hooi(array, array.shape, init=init)
    assert tucker.ranks == (6, 3, 2)
    assert tucker.error <= 1e-13
    assert tucker_hooi(array, (LONG, 2, 2), init=init).ranks == (4, 2, 2)
