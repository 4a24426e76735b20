"""The memory of CP grows with the data, not with the square of a mode."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tnlib import cp_als, cp_als_batch
from tnlib.testing import relative_error

RANK = 3
# What is held at once: copies of the data, and arrays of the size of all factors.
COPIES, FACTORS = 6, 20
CALLS = {
    "als": lambda x: cp_als(x, RANK, method="als", compress=False, max_iter=3),
    "lm": lambda x: cp_als(x, RANK, method="lm", compress=False, max_iter=3),
    "compressed": lambda x: cp_als(x, RANK, compress=True, max_iter=3),
    "single": lambda x: cp_als(x.astype(np.float32), RANK, compress=False, max_iter=3),
    "complex": lambda x: cp_als(x * 1j, RANK, compress=False, max_iter=3),
    "batch": lambda x: cp_als_batch([x, x], RANK, max_iter=3),
}


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("axis", range(3))
def test_a_long_mode_costs_no_square_of_itself(call, axis):
    shape = [6, 6, 6]
    shape[axis] = 4000
    array = np.random.default_rng(0).standard_normal(shape)
    tracemalloc.start()
    try:
        CALLS[call](array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 2 if call in ("batch", "complex") else 1
    assert peak < held * (COPIES * array.nbytes + FACTORS * RANK * sum(shape) * array.itemsize)


@pytest.mark.parametrize("rank", [1, 4, 30])
def test_a_mode_longer_than_all_others_together_is_fitted(rank):
    rng = np.random.default_rng(0)
    array = np.einsum("ir,jr,kr->ijk", *(rng.standard_normal((n, 4)) for n in (50, 2, 3)))
    cp = cp_als(array, rank, compress=False)
    assert abs(cp.error - relative_error(cp.to_dense(), array)) <= 1e-12
    assert rank < 4 or cp.error < 1e-6
