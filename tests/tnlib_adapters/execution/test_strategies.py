"""Every strategy that may be chosen computes the same function and the same gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tnlib_adapters.declarations import method_networks, mpo_networks, networks, random_cores
from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, Site
from tnlib_adapters.execution.base_weight import DenseWeight
from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.execution.strategies import choose_strategy

pytestmark = pytest.mark.filterwarnings("ignore:.*has no factors")


@settings(max_examples=100)
@given(st.one_of(networks(), method_networks(), mpo_networks()), st.integers(1, 40))
def test_every_strategy_has_the_values_and_gradients_of_the_dense_update(network, tokens):
    cores = {k: v.requires_grad_() for k, v in random_cores(network).items()}
    anchor = random_cores(network, seed=1) if network.anchored else None
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = drawn(tokens, network.in_features).requires_grad_()
    weight = drawn(network.out_features, network.in_features)
    bias = drawn(network.out_features).requires_grad_()
    seed = drawn(tokens, network.out_features)
    update = network.delta(cores, anchor)
    wanted = [x, *cores.values()]
    apart = x @ update.mT
    joint = torch.nn.functional.linear(x, weight + update, bias)
    results = []
    bound = network.bound(cores, anchor)
    for strategy in network.strategies[0].all:
        if strategy.name == "fused":
            results.append((recomputed_linear(x, DenseWeight(weight), bias, bound), joint))
        elif strategy.name == "dense":
            results.append((recomputed_linear(x, None, None, bound), apart))
        else:
            through = network.follow(strategy, x, cores)
            fixed = 0.0 if anchor is None else network.follow(strategy, x, anchor)
            results.append((through - fixed, apart))
        if strategy.factors and anchor is None:
            matrices = network.matrices(strategy, cores)
            results.append((factored_linear(x, weight, bias, matrices), joint))
    assert len(results) >= 2
    for found, expected in results:
        ends = wanted + ([bias] if expected is joint else [])
        scale = max(float(expected.detach().abs().max()), 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * scale)
        pairs = zip(
            torch.autograd.grad(found, ends, seed, retain_graph=True),
            torch.autograd.grad(expected, ends, seed, retain_graph=True),
            strict=True,
        )
        for a, b in pairs:
            size = max(float(b.abs().max()), 1.0)
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * size)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("base", ["none", "dense"])
@pytest.mark.parametrize(
    "config", [LoTRConfig(r=8), LoRTAConfig(r=8), LoRETTAConfig(variant="rep"), DoTAConfig(r=8)]
)
def test_the_chosen_strategy_is_the_one_with_the_least_predicted_time(config, training, base):
    site = Site("q", 576, 576, depth=6, role="q", n_matrices=4, heads=9, kv_heads=9)
    network = config.network(site)
    (known,) = network.strategies
    starts, _ = known.table[training, base]
    assert starts[0] == 0
    assert list(starts) == sorted(set(starts))
    edges = {tokens for start in starts[1:] for tokens in (start - 1, start)}
    for tokens in {1, 512, 65536} | edges:
        usable = [
            strategy
            for strategy in known.all
            if (base == "dense" or strategy.name != "fused")
            and (training or not strategy.checkpointed)
        ]
        costs = {one: known.cost(one, tokens, training=training).seconds for one in usable}
        chosen = choose_strategy(network, base, tokens, training=training)
        assert costs[chosen] <= min(costs.values()) * 1.02


@pytest.mark.parametrize("widths", [(4096, 4096), (11_008, 4096), (4096, 11_008)])
@pytest.mark.parametrize(
    "config", [DoTAConfig(), LoTRConfig(), LoRTAConfig(), LoRETTAConfig()], ids=lambda c: c.method
)
def test_over_4_bits_no_strategy_saves_more_than_the_activations_that_come_in(config, widths):
    out, width = widths
    network = config.network(Site("layers.0.up", out, width, depth=32, layer=0))
    for tokens in (1, 32, 256, 4096):
        chosen = choose_strategy(network, "packed", tokens, training=True)
        saved = network.strategies[0].cost(chosen, tokens, training=True).saved_bytes
        assert saved <= 4 * width * max(tokens, 256)
        # Forming the update costs a product more than the base: only what saves much is formed.
        assert (chosen.name == "fused") == (config.method == "dota"), (tokens, chosen.name)


def test_low_rank_methods_are_applied_as_low_rank_factors_and_dota_by_one_fused_weight():
    site = Site("q", 576, 576, depth=6, role="q", n_matrices=4, heads=9, kv_heads=9)
    for config in (LoTRConfig(r=8), LoRTAConfig(r=8), LoRETTAConfig(variant="rep")):
        chosen = choose_strategy(config.network(site), "dense", 512, training=True)
        shapes = [factor.shape for factor in chosen.factors]
        assert shapes[0][0] == shapes[-1][1] == 576
        assert all(shape[1] <= 8 for shape in shapes[:-1])
    for rank in (8, 32):
        network = DoTAConfig(r=rank).network(site)
        assert choose_strategy(network, "dense", 512, training=True).name == "fused"
        assert choose_strategy(network, "dense", 1, training=False).name == "activations"
