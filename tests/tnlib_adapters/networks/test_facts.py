"""What a file says of its adapter is what its declarations are."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.tnlib_adapters.forms import EXACT, MERGEABLE, METHODS
from tnlib_adapters import Core, LoRETTAConfig, LoRTAConfig, Network, Site, zeros
from tnlib_adapters.networks.facts import facts

WIDE = Site("q_proj", 768, 768)


@pytest.mark.parametrize("form", METHODS)
def test_methods_merge_and_export_as_their_declarations_do(form):
    found = facts([METHODS[form]().network(WIDE)])
    assert found["merges"] == (form in MERGEABLE)
    assert found["low_rank"] == (form in EXACT)


def test_one_factor_of_all_updates_is_told_and_several_are_not():
    one, other = (LoRTAConfig(alpha=alpha).network(WIDE) for alpha in (16.0, 8.0))
    assert facts([one, one])["scale"] == 2.0
    assert facts([one, other])["scale"] is None
    site = Site("qkv", 2304, 768, role="qkv", n_matrices=4, heads=12, kv_heads=12)
    fused = LoRTAConfig().network(site)
    assert facts([fused])["scale"] == 2.0
    adapter = LoRETTAConfig(variant="adp", bottleneck=8, alpha=4.0)
    assert facts([adapter.network(WIDE)])["scale"] == 0.5


def test_one_layer_that_does_not_merge_is_enough():
    head = LoRETTAConfig(tt_head=True)
    networks = [head.network(WIDE), head.network(Site("pooler.dense", 768, 768))]
    assert facts(networks[:1])["merges"]
    assert not facts(networks)["merges"]


def test_a_rank_above_a_width_is_no_low_rank():
    cores = Core("a", ("r", "in")), Core("b", ("out", "r"), zeros)
    sizes = {"in": 8, "out": 6, "r": 7}
    assert not facts([Network(cores, sizes, ("out",), ("in",))])["low_rank"]
    assert facts([Network(cores, {**sizes, "r": 6}, ("out",), ("in",))])["low_rank"]


def test_a_long_chain_of_cores_without_open_legs_is_told_by_its_first_cut():
    legs = [f"r{k}" for k in range(31)]
    middle = (Core(f"g{k}", (one, other)) for k, (one, other) in enumerate(pairwise(legs)))
    cores = Core("a", (legs[0], "in")), *middle, Core("b", ("out", legs[-1]), zeros)
    sizes = {"in": 8, "out": 6} | dict.fromkeys(legs, 2)
    assert facts([Network(cores, sizes, ("out",), ("in",))])["low_rank"]
