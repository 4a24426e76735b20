"""Networks as data: counts, dense updates and products follow from the declaration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tnlib_adapters.declarations import LORA, TERMS, mpo_networks, random_cores
from tests.tolerances import assert_close
from tnlib import MPO
from tnlib_adapters import Core, Network
from tnlib_adapters.execution.strategies import choose_strategy
from tnlib_adapters.networks.builders import mpo_network


def test_lora_is_two_cores():
    cores = random_cores(LORA)
    assert LORA.shapes == {"a": (2, 7), "b": (5, 2)}
    assert LORA.n_params == 24
    torch.testing.assert_close(LORA.delta(cores), 0.5 * cores["b"] @ cores["a"])


@given(mpo_networks(), st.integers(0, 5))
def test_apply_is_the_product_with_the_dense_update(network, tokens):
    cores = random_cores(network)
    anchor = random_cores(network, seed=1) if network.anchored else None
    x = torch.randn(2, tokens, network.in_features, dtype=torch.float64)
    expected = x @ network.delta(cores, anchor).mT
    assert_close(network.apply(x, cores, anchor), expected, TERMS)


@given(mpo_networks())
def test_an_mpo_network_is_the_mpo_of_its_cores(network):
    cores = random_cores(network)
    plain = network.unanchored
    expected = MPO(list(cores.values())).to_matrix()
    assert_close(plain.delta(cores), expected, TERMS)
    assert plain.n_params == sum(core.numel() for core in cores.values())


@given(mpo_networks().filter(lambda network: network.anchored))
def test_an_anchored_network_starts_at_exactly_zero(network):
    cores = random_cores(network)
    assert not network.delta(cores, dict(cores)).any()


@given(mpo_networks())
def test_both_ways_have_the_same_gradients(network):
    cores = {k: v.requires_grad_() for k, v in random_cores(network).items()}
    anchor = random_cores(network, seed=1) if network.anchored else None
    x = torch.randn(3, network.in_features, dtype=torch.float64, requires_grad=True)
    wanted = [x, *cores.values()]
    one = torch.autograd.grad((x @ network.delta(cores, anchor).mT).square().sum(), wanted)
    two = torch.autograd.grad(network.apply(x, cores, anchor).square().sum(), wanted)
    for a, b in zip(one, two, strict=True):
        # A gradient goes through two such sums.
        assert_close(a, b, 2 * TERMS)


def test_few_tokens_go_through_the_activations_and_many_form_the_update():
    network = mpo_network((16, 16), (16, 16), (1, 12, 1))
    for training in (False, True):
        names = [
            choose_strategy(network, "dense", tokens, training=training).name for tokens in (1, 256)
        ]
        assert names == ["activations", "fused"]


BAD = [
    ({"cores": (Core("a", ("in",)), Core("a", ("out",)))}, "must be different"),
    ({"cores": (Core("a", ("in", "out", "x")),)}, "without a size"),
    ({"cores": (Core("a", ("in",)),)}, "open legs that no core has"),
    (
        {
            "cores": (Core("a", ("in", "bnd")), Core("b", ("bond", "out"))),
            "sizes": {"in": 2, "out": 3, "bond": 2, "bnd": 2},
        },
        r"nothing joins them: \['bnd', 'bond'\]",
    ),
    ({"cores": (Core("a", ("in", "out")),), "out_legs": ("out", "in")}, "open once"),
    ({"cores": (Core("a", ("in", "out")),), "residual": True}, "needs an anchored network"),
    ({"cores": (Core("a", ("in", "out")),), "sizes": {"in": 2, "out": 0}}, "at least 1"),
    ({"cores": (Core("a", ("in", "out")),), "sizes": {"in": 2.0, "out": 3}}, "must be an int"),
    ({"cores": ()}, "at least one core"),
    ({"cores": (Core("a", ("in", "out")),), "dropout": 1.0}, "dropout is below 1"),
    ({"cores": (Core("a", ("in", "out")),), "scale": float("nan")}, "scale=nan"),
    (
        {"cores": (Core("a", ("in", "out")),), "fixed_indices": {"in": 0}},
        r"a fixed index: \['in'\]",
    ),
    (
        {"cores": (Core("a", ("in", "out")),), "fixed_indices": {"layer": 0}},
        "cannot be fixed at layer=0",
    ),
    (
        {"cores": (Core("u", ("in",), group="x_1"), Core("u_x", ("out",), group="1"))},
        "must be different, got .*u_x_1",
    ),
    ({"cores": (Core("a", ("in", "out"), group="g"),), "anchored": True}, "of its own only"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_declarations_that_do_not_fit_are_refused(changes, message):
    arguments = {"sizes": {"in": 2, "out": 3}, "out_legs": ("out",), "in_legs": ("in",)}
    with pytest.raises(ValueError, match=message):
        Network(**(arguments | changes))


def test_an_anchor_is_given_exactly_where_there_is_one():
    cores = random_cores(LORA)
    with pytest.raises(ValueError, match="takes no anchor"):
        LORA.delta(cores, cores)
    with pytest.raises(ValueError, match="needs anchor"):
        mpo_network((2,), (2,), (1, 1), anchored=True).delta({"core_0": torch.ones(1, 2, 2, 1)})
