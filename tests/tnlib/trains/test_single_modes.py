"""Modes of size 1 change nothing: every decomposition, kernel, library and precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import LIBRARIES, numpy_of, relative
from tests.tolerances import rounding
from tnlib import (
    cp_als,
    cp_als_batch,
    mpo_decompose,
    mpo_decompose_batch,
    rank_profile,
    tt_round,
    tt_svd,
    tucker_hooi,
    tucker_hosvd,
)
from tnlib.arrays import backend

METHODS = ("auto", "svd", "gram", "krylov")
DTYPES = ("float32", "float64", "complex64", "complex128")
# Some axes of size 1 among few others.
SHAPES = st.lists(st.sampled_from([1, 1, 3, 4]), min_size=2, max_size=4).map(tuple)


def drawn(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape)
    return (array + 1j * rng.standard_normal(shape) if "complex" in dtype else array).astype(dtype)


@pytest.mark.parametrize("method", METHODS)
@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    library=st.sampled_from(sorted(LIBRARIES)),
    limit=st.sampled_from([{"ranks": 1}, {"ranks": 2}, {"eps": 0.1}, {"max_params": 80}]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_trains_operators_and_tucker(method, shape, dtype, library, limit, seed):
    array = drawn(shape, dtype, seed)
    given_array = LIBRARIES[library](array)
    found = [tt_svd(given_array, method=method, **limit)]
    found.append(tucker_hosvd(given_array, method=method, **limit))
    if "eps" not in limit:
        found.append(tucker_hooi(given_array, method=method, **limit))
        found.append(tucker_hooi(given_array, method=method, init="random", **limit))
    found.append(tt_round(found[0] + found[0], method=method, **limit))
    for decomposition in found[:-1]:
        assert type(decomposition.to_dense()) is type(given_array)
        exact = relative(decomposition.to_dense(), given_array)
        assert abs(decomposition.error - exact) <= rounding(dtype, 500)
        if "eps" in limit:
            assert exact <= limit["eps"] + rounding(dtype, 500)
    matrix = given_array.reshape(shape[0], -1)
    operator = mpo_decompose(
        matrix, method=method, row_dims=(shape[0], 1), col_dims=(1, matrix.shape[1]), **limit
    )
    assert abs(operator.error - relative(operator.to_matrix(), matrix)) <= rounding(dtype, 500)


@settings(max_examples=20)
@given(SHAPES, st.sampled_from(DTYPES[:2]), st.sampled_from(sorted(LIBRARIES)))
def test_sums_of_terms_batches_and_profiles(shape, dtype, library):
    array = drawn(shape, dtype, 0)
    given_array = LIBRARIES[library](array)
    stack = LIBRARIES[library](np.stack([array, 2 * array]))
    for cp in (
        cp_als(given_array, 2, max_iter=3),
        cp_als(given_array, 2, max_iter=3, method="lm"),
        cp_als_batch(stack, 2, max_iter=3)[0],
    ):
        assert cp.shape == shape
        assert cp.error <= 1 + rounding(dtype, 500)
    matrices = stack.reshape(2, shape[0], -1)
    for operator in mpo_decompose_batch(matrices, 1):
        assert operator.error <= 1 + rounding(dtype, 500)
    for name in ("tt", "tucker"):
        profile = rank_profile(given_array, [1, 2], format=name)
        assert np.isfinite(profile.estimate).all()


@given(SHAPES, st.data())
def test_views_of_numpy_arrays_become_tensors(shape, data):
    array = drawn(shape, "float64", 0)
    axes = data.draw(st.permutations(range(array.ndim)))
    signs = data.draw(st.tuples(*[st.sampled_from([1, -1])] * array.ndim))
    view = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    for values in (view, view[..., :1], np.broadcast_to(view[:1], view.shape)):
        tensor = backend.from_numpy(values, torch.empty(0))
        np.testing.assert_array_equal(numpy_of(tensor), values)
