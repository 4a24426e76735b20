"""A batch is decomposed like its members."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arrays import (
    LIBRARIES,
    interleaved,
    matrices,
    numpy_of,
    relative,
    unfolding_tails,
    with_spectrum,
)
from tests.tolerances import SUBSPACE, rounding
from tnlib import mpo_decompose, mpo_decompose_batch

LIBRARY = st.sampled_from(sorted(LIBRARIES))


@given(matrices(), st.integers(1, 6), LIBRARY)
@settings(max_examples=40)
def test_every_member_is_within_the_tails_and_tells_the_truth(case, ranks, library):
    matrix, rows, columns = case
    rng = np.random.default_rng(0)
    stack = np.stack([matrix, rng.standard_normal(matrix.shape), 0 * matrix, 3 * matrix])
    modes = {"row_dims": rows, "col_dims": columns}
    found = mpo_decompose_batch(LIBRARIES[library](stack), ranks, **modes)
    assert len(found) == 4
    for mpo, alone in zip(found, stack, strict=True):
        tails = unfolding_tails(interleaved(alone, rows, columns), mpo.ranks)
        operations = sum(mpo.ranks) + alone.size
        assert abs(mpo.error - relative(mpo.to_matrix(), alone)) <= rounding(float, operations)
        # With equal singular values at a cut two trains may both be such truncations and differ.
        assert mpo.error <= math.sqrt(math.fsum(tail**2 for tail in tails)) + SUBSPACE
        assert all(p <= max(ranks, 1) for p in mpo.ranks)
        if mpo.info.kernels:
            lost = sum(mpo.info.discarded)
            assert len(mpo.info.discarded) == len(mpo.info.kernels)
            assert mpo.error**2 == pytest.approx(lost, abs=1e-12)
        for core in mpo.cores[:-1]:
            left = numpy_of(core).reshape(-1, core.shape[3])
            np.testing.assert_allclose(left.T @ left, np.eye(left.shape[1]), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_every_precision_comes_back_as_it_came(dtype):
    generator = torch.Generator().manual_seed(0)
    wide = torch.complex64 if dtype == "complex64" else torch.float32
    weights = [torch.randn(24, 36, generator=generator, dtype=wide) for _ in range(3)]
    found = mpo_decompose_batch([w.to(getattr(torch, dtype)) for w in weights], 4)
    for mpo, weight in zip(found, weights, strict=True):
        assert mpo.cores[0].dtype == getattr(torch, dtype)
        assert mpo.error == pytest.approx(mpo_decompose(weight, 4).error, abs=5e-3)


def test_tolerances_and_large_matrices_go_one_by_one():
    rng = np.random.default_rng(0)
    stack = rng.standard_normal((2, 160, 160))
    for arguments in ({"ranks": 5}, {"eps": 0.3}, {"ranks": 5, "refine": 1}):
        for mpo, matrix in zip(mpo_decompose_batch(stack, **arguments), stack, strict=True):
            alone = mpo_decompose(matrix, **arguments)
            assert (mpo.ranks, mpo.info.kernels) == (alone.ranks, alone.info.kernels)
            assert mpo.error == pytest.approx(alone.error, rel=SUBSPACE)


def test_a_member_of_low_rank_is_found_exactly():
    low = with_spectrum([1.0, 1e-3, 1e-9], 32, 32)
    full = with_spectrum(np.ones(32), 32, 32)
    modes = {"row_dims": (32, 1), "col_dims": (1, 32)}
    found = mpo_decompose_batch(np.stack([low, full]), 3, **modes)
    assert found[0].error < 1e-13
    assert found[1].error == pytest.approx(np.sqrt(29 / 32))


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e-160), ("float32", 1e-22)])
def test_members_of_very_different_scales_are_all_true(dtype, scale):
    matrix = np.random.default_rng(0).standard_normal((12, 12))
    pair = np.stack([matrix, matrix * scale]).astype(dtype)
    first, second = mpo_decompose_batch(pair, 2)
    assert second.error == pytest.approx(first.error, rel=1e-5)


BAD = [
    (np.ones((4, 4)), {"ranks": 1}, ValueError, r"must hold matrices, got arrays of shape \(4,\)"),
    (np.ones(()), {"ranks": 1}, ValueError, "got a single number"),
    ([np.ones((4, 4)), np.ones((4, 5))], {"ranks": 1}, ValueError, r"one shape, got \(4, 4\)"),
    ([np.ones((4, 4)), torch.ones(4, 4)], {"ranks": 1}, TypeError, "one library"),
    ([np.ones((4, 4)), np.ones((4, 4), np.float32)], {"ranks": 1}, TypeError, "one dtype"),
    ([], {"ranks": 1}, ValueError, "must not be empty"),
    (np.ones((2, 4, 4)), {}, ValueError, "got none"),
    (np.ones((2, 4, 4)) * np.nan, {"ranks": 1}, ValueError, "nan or inf"),
    (np.ones((2, 4, 4)), {"ranks": 1, "row_dims": (3, 1)}, ValueError, "product 3, expected 4"),
]


@pytest.mark.parametrize(("stack", "arguments", "error", "message"), BAD)
def test_bad_calls_say_what_is_wrong(stack, arguments, error, message):
    with pytest.raises(error, match=message):
        mpo_decompose_batch(stack, **arguments)
