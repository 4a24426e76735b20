"""A fused projection is fused with its weight only where that is best for every part."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tnlib_adapters.declarations import random_cores
from tests.tolerances import assert_close
from tnlib_adapters import Core, FusedProjection, Network
from tnlib_adapters.execution.strategies import PER_PART, choose_strategy, thresholds
from tnlib_adapters.networks.builders import mpo_network


def lora(role, rows, width=256, rank=4):
    cores = Core(f"a_{role}", ("r", "in")), Core(f"b_{role}", ("out", "r"))
    return Network(cores, {"in": width, "out": rows, "r": rank}, ("out",), ("in",))


# Parts of very different sizes have different thresholds.
PROJECTION = FusedProjection((lora("q", 4096), lora("k", 64), lora("v", 64)))


def test_the_whole_is_fused_from_where_the_last_part_is():
    own = [thresholds(part, 0, "dense", training=False) for part in PROJECTION.parts]
    starts = [next(start for start, s in steps if s.name == "fused") for steps in own]
    assert len(set(starts)) > 1
    for n_tokens in (min(starts), max(starts) - 1, max(starts)):
        chosen = choose_strategy(PROJECTION, "dense", n_tokens, training=False)
        assert (chosen.name == "fused") == (n_tokens >= max(starts))
        assert (chosen is PER_PART) == (n_tokens < max(starts))


@pytest.mark.parametrize("base", ["none", "dense", "packed"])
@pytest.mark.parametrize("training", [False, True])
def test_thresholds_are_where_the_choice_changes(training, base):
    for part, network in enumerate(PROJECTION.parts):
        steps = thresholds(PROJECTION, part, base, training=training)
        assert steps[0][0] == 1
        assert all(one[1] is not other[1] for one, other in itertools.pairwise(steps))
        for n_tokens in (1, 17, 900, 20_000):
            chosen = choose_strategy(PROJECTION, base, n_tokens, training=training)
            if chosen is PER_PART:
                chosen = choose_strategy(network, "none", n_tokens, training=training)
            assert chosen is [s for start, s in steps if start <= n_tokens][-1]


@pytest.mark.parametrize("tokens", [3, 40])
def test_applied_it_is_the_product_with_the_dense_update(tokens):
    projection = FusedProjection((lora("q", 24, 16), lora("k", 12, 16)), groups=2)
    cores = random_cores(projection)
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = x @ projection.delta(cores).mT
    assert_close(projection.apply(x, cores), expected, operations=16 * 4)


@pytest.mark.parametrize(
    ("parts", "groups", "message"),
    [
        ((lora("q", 8, 16), lora("k", 8, 12)), 1, "parts need one input width"),
        ((lora("q", 8, 16), lora("k", 9, 16)), 2, r"rows \[8, 9\] cannot be cut into 2 groups"),
        ((lora("q", 8, 16), lora("q", 8, 16)), 1, "two parts have a core 'a_q'"),
        ((mpo_network((2, 2), (2, 2), (1, 2, 1), anchored=True),), 1, "are not anchored"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, groups, message):
    with pytest.raises(ValueError, match=message):
        FusedProjection(parts, groups)
