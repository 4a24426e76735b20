"""The Tucker-2 fit: errors within the bounds of the unfoldings, orthonormal factors."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tnlib_adapters.low_rank_updates import low_rank, norm, tails
from tnlib_adapters.fitting.tucker import tucker2


@pytest.mark.parametrize("rank", [1, 3, 7, 11])
def test_tucker_errors_are_within_the_bounds_of_the_unfoldings(rank):
    updates = [low_rank((20, 16), 3, seed) for seed in range(4)]
    stack = torch.stack([update.dense() for update in updates])
    u, cores, v = tucker2(updates, rank, torch.Generator().manual_seed(0))
    off = norm(torch.einsum("or,nrs,is->noi", u, cores, v) - stack)
    unfoldings = stack.permute(1, 0, 2).flatten(1), stack.permute(2, 0, 1).flatten(1)
    least = [tails(unfolding, rank) for unfolding in unfoldings]
    assert max(least) * (1 - 1e-9) <= off <= math.hypot(*least) * (1 + 1e-9) + 1e-9
    torch.testing.assert_close(u.mT @ u, torch.eye(u.shape[1], dtype=u.dtype))
