"""Low-rank factors are read off a network: the smallest cut, and exactly the update."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tnlib_adapters import declarations
from tests.tnlib_adapters.declarations import LORA, method_networks, random_cores
from tnlib_adapters import Core, FusedProjection, LoRTAConfig, Network, Site
from tnlib_adapters.networks.builders import mpo_network

pytestmark = pytest.mark.filterwarnings("ignore:.*has no factors")


@st.composite
def networks(draw):
    """Networks with any joints: legs of size 1, legs that many cores have, fixed legs."""
    number = draw(st.integers(1, 6))
    sizes, at = {}, {}
    legs = [[] for _ in range(number)]
    out_legs, in_legs = [], []
    for k in range(draw(st.integers(0, 3))):
        sizes[f"o{k}"] = draw(st.integers(1, 4))
        out_legs.append(f"o{k}")
        legs[draw(st.integers(0, number - 1))].append(f"o{k}")
    for k in range(draw(st.integers(0, 3))):
        sizes[f"i{k}"] = draw(st.integers(1, 4))
        in_legs.append(f"i{k}")
        legs[draw(st.integers(0, number - 1))].append(f"i{k}")
    for k in range(draw(st.integers(0, 5))):
        members = draw(st.sets(st.integers(0, number - 1), min_size=min(2, number)))
        sizes[f"j{k}"] = draw(st.integers(1, 3)) if len(members) > 1 else 1
        for member in sorted(members):
            legs[member].append(f"j{k}")
        if draw(st.integers(0, 3)) == 0 and members:
            at[f"j{k}"] = draw(st.integers(0, sizes[f"j{k}"] - 1))
    used = {leg for own in legs for leg in own}
    return Network(
        tuple(Core(f"c{k}", tuple(own)) for k, own in enumerate(legs)),
        {leg: size for leg, size in sizes.items() if leg in used},
        tuple(out_legs),
        tuple(in_legs),
        fixed_indices={leg: index for leg, index in at.items() if leg in used},
        scale=draw(st.sampled_from([1.0, -0.5])),
    )


def smallest_cut(network):
    """Smallest product of the legs between the two sides, over all ways to cut; None without."""
    cores = [
        {leg for leg in core.legs if leg not in network.fixed_indices} for core in network.cores
    ]
    large = {leg for leg, size in network.sizes.items() if size > 1}
    ranks = []
    for picks in itertools.product((0, 1), repeat=len(cores)):
        sides = [set(), set()]
        for side, legs in zip(picks, cores, strict=True):
            sides[side] |= legs & large
        if not (sides[0] & set(network.in_legs) or sides[1] & set(network.out_legs)):
            ranks.append(math.prod(network.sizes[leg] for leg in sides[0] & sides[1]))
    return min(ranks, default=None)


@settings(max_examples=100)
@given(networks())
def test_exact_factors_are_the_update_in_any_network(network):
    cores = random_cores(network)
    delta = network.delta(cores)
    found, rank = network.low_rank_factors(cores), smallest_cut(network)
    if rank is None or rank > min(delta.shape):
        assert found is None
        return
    B, A = found
    assert (tuple(B.shape), tuple(A.shape)) == ((len(delta), rank), (rank, delta.shape[1]))
    scale = float(torch.linalg.norm(B) * torch.linalg.norm(A))
    assert float(torch.linalg.norm(B @ A - delta)) <= 1e-12 * scale


@given(st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_stacked_updates_keep_equal_rows_once(groups, rank, same):
    def part(name, out, group):
        cores = (Core("a", ("r", "in"), group=group), Core(name, ("out", "r")))
        sizes = {"out": out, "in": 20, "r": rank}
        return Network(cores, sizes, out_legs=("out",), in_legs=("in",))

    rows = {"q": 8, "k": 4, "v": 2}
    network = FusedProjection(
        tuple(part(name, n * groups, "all" if same else name) for name, n in rows.items()),
        groups=groups,
    )
    cores = random_cores(network)
    B, A = network.low_rank_factors(cores)
    if same:
        assert len(A) == rank
    torch.testing.assert_close(B @ A, network.delta(cores), rtol=1e-12, atol=1e-12)


def test_the_cheapest_cut_is_taken():
    sizes = {"out": 9, "in": 9, "wide": 8, "narrow": 2}
    cores = (Core("a", ("in", "wide")), Core("g", ("wide", "narrow")), Core("b", ("out", "narrow")))
    network = Network(cores, sizes, out_legs=("out",), in_legs=("in",))
    B, A = network.low_rank_factors(random_cores(network))
    assert (tuple(B.shape), tuple(A.shape)) == ((9, 2), (2, 9))


def test_a_leg_that_many_cores_have_counts_once():
    site = Site("q", 48, 48, role="q", n_matrices=4, heads=4, kv_heads=4, depth=3, layer=1)
    network = LoRTAConfig(r=5).network(site)
    _, A = network.low_rank_factors(random_cores(network))
    assert len(A) == 5


def test_networks_without_a_cut_have_no_factors():
    operator = mpo_network((2, 3), (3, 2), (1, 2, 1))
    assert operator.low_rank_factors(random_cores(operator)) is None
    wide = replace(LORA, sizes={**LORA.sizes, "bond": 6})
    assert wide.low_rank_factors(random_cores(wide)) is None


def test_an_anchored_network_has_twice_the_rank():
    network = replace(LORA, anchored=True)
    cores, anchor = random_cores(network), random_cores(network, seed=1)
    B, A = network.low_rank_factors(cores, anchor)
    assert len(A) == 4
    torch.testing.assert_close(B @ A, network.delta(cores, anchor), rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(st.one_of(declarations.networks(), method_networks()))
def test_folded_matrices_multiply_to_the_update(network):
    cores = random_cores(network)
    anchor = random_cores(network, seed=1) if network.anchored else None
    product = torch.eye(network.in_features, dtype=torch.float64)
    (matrices,) = network.maps(cores, anchor)
    for matrix in matrices:
        product = product @ matrix
    expected = network.delta(cores, anchor).mT
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-10 * scale)
    assert sum(m.numel() for m in matrices) <= network.in_features * network.out_features
