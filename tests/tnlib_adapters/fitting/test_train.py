"""The fit of one train per weight: exact where the bonds hold it, and within the bounds else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tnlib_adapters.low_rank_updates import low_rank, norm, tails
from tests.tolerances import rounding
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.fitting.train import fit_train
from tnlib_adapters.networks.builders import matrix_train


def fitted(network, update):
    generator = torch.Generator().manual_seed(0)
    cores = fit_train({"w": network}, {"w": update}, generator)["w"]
    assert {key: tuple(core.shape) for key, core in cores.items()} == network.shapes
    return network.delta(cores)


@given(st.data())
def test_bonds_that_hold_the_update_lose_nothing(data):
    sides = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    rows, columns, rank = data.draw(sides), data.draw(sides), data.draw(st.integers(1, 3))
    shape = math.prod(rows), math.prod(columns)
    network = matrix_train(rows, columns, max(shape) * rank, scale=0.5)
    update = low_rank(shape, rank, seed=data.draw(st.integers(0, 99)))
    # Sums over all entries of either side, in eight cores at most.
    allowed = rounding(torch.float64, 8 * max(shape)) * norm(update.left) * norm(update.right)
    assert norm(fitted(network, update) - update.dense()) <= allowed


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_errors_are_within_the_bounds_of_the_unfoldings(rank):
    rows, columns = (6, 4), (2, 4, 5)
    update = low_rank((24, 40), 5, seed=1)
    off = norm(fitted(matrix_train(rows, columns, rank), update) - update.dense())
    modes = (*rows, *columns)
    cuts = [math.prod(modes[:k]) for k in range(1, len(modes))]
    least = [tails(update.dense().reshape(cut, -1), rank) for cut in cuts]
    assert max(least) * (1 - 1e-9) <= off <= math.hypot(*least) * (1 + 1e-9) + 1e-9


def test_an_update_of_zero_is_the_start():
    network = matrix_train((3, 2), (2, 3), 2)
    update = LowRankUpdate(torch.zeros(6, 1).double(), torch.ones(1, 6).double())
    assert not fitted(network, update).any()


def test_modes_of_one_are_left_out_but_one_per_side():
    network = matrix_train((1, 3, 1, 1), (1, 1), 2)
    assert list(network.shapes.values()) == [(1, 3, 1), (1, 1, 1)]
    long = matrix_train((1,) * 30 + (48,), (64,) + (1,) * 30, 4)
    assert [tuple(factor.shape) for factor in long.low_rank_factors(long.initial())] == [
        (48, 4),
        (4, 64),
    ]
