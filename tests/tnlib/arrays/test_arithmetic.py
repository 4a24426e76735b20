"""Decompositions compute in their own arithmetic, whatever the caller has switched on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.arrays import relative
from tests.tolerances import rounding
from tnlib import (
    allocate_ranks,
    mpo_decompose,
    mpo_decompose_batch,
    rank_profile,
    tt_round,
    tt_svd,
    tucker_hooi,
    tucker_hosvd,
)

CUBE = np.random.default_rng(0).standard_normal((5, 6, 7))
MATRIX = CUBE.reshape(30, 7)
DECOMPOSITIONS = {
    "tt_svd": (lambda x: tt_svd(x, 3), CUBE),
    "tt_svd refined": (lambda x: tt_svd(x, 3, refine=1), CUBE),
    "tt_round": (lambda x: tt_round(tt_svd(x, 6), 2), CUBE),
    "hosvd": (lambda x: tucker_hosvd(x, 3), CUBE),
    "partial": (lambda x: tucker_hosvd(x, 3, modes=(0, 1)), CUBE),
    "hooi": (lambda x: tucker_hooi(x, 3), CUBE),
    "mpo": (lambda x: mpo_decompose(x, 3), MATRIX),
    "batch": (lambda x: mpo_decompose_batch(x[None], 3)[0], MATRIX),
}


@pytest.mark.parametrize("name", sorted(DECOMPOSITIONS))
def test_autocast_changes_nothing(name):
    decompose, array = DECOMPOSITIONS[name]
    tensor = torch.from_numpy(array.astype(np.float32))
    plain = decompose(tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decompose(tensor)
        dense = found.to_dense()
    assert dense.dtype == torch.float32
    assert found.error == pytest.approx(plain.error, abs=rounding("float32", 100))
    if name != "tt_round":
        exact = relative(dense.reshape(array.shape), tensor)
        assert found.error == pytest.approx(exact, abs=rounding("float32", 100))


@pytest.mark.parametrize("name", sorted(DECOMPOSITIONS))
@pytest.mark.parametrize("scale", [1.0, 1e-160, 1e-300])
def test_numbers_that_underflow_are_no_error(name, scale):
    decompose, array = DECOMPOSITIONS[name]
    steep = scale * array * 10.0 ** -(60.0 * np.arange(array.shape[-1]))
    with np.errstate(all="raise"):
        assert decompose(steep).error <= 1.0


def test_choosing_is_the_same_under_autocast():
    tensor = torch.from_numpy(MATRIX.astype(np.float32))
    plain = rank_profile(tensor, [1, 2, 3]).estimate, allocate_ranks([tensor], max_params=90)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rank_profile(tensor, [1, 2, 3]).estimate, allocate_ranks([tensor], max_params=90)
    np.testing.assert_allclose(found[0], plain[0], atol=rounding("float32", 100))
    assert found[1].ranks == plain[1].ranks
