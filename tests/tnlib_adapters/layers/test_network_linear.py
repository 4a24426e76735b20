"""NetworkLinear: an adapted layer without any framework."""

from __future__ import annotations

import copy

import pytest
import torch

from tnlib import mpo_decompose
from tnlib_adapters import Core, DoTAConfig, LoRETTAConfig, LoTRConfig, Network, NetworkLinear, Site

X = torch.randn(40, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear(**kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(24, 36, dtype=torch.float64, **kwargs)


def trained(residual=False):
    layer = NetworkLinear.from_linear(linear(), DoTAConfig(r=3, residual=residual))
    optimizer = torch.optim.Adam(layer.update.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        layer(X).square().sum().backward()
        optimizer.step()
    return layer


@pytest.mark.parametrize("tokens", [1, 40])
def test_dota_starts_at_the_layer_bit_for_bit(tokens):
    base = linear()
    layer = NetworkLinear.from_linear(copy.deepcopy(base), DoTAConfig(r=3))
    assert torch.equal(layer(X[:tokens]), base(X[:tokens]))


def test_initial_cores_are_the_balanced_mpo_of_the_weight():
    base = linear()
    layer = NetworkLinear.from_linear(base, DoTAConfig(r=3))
    mpo = mpo_decompose(base.weight, layer_ranks(layer), row_dims=(3, 3, 4), col_dims=(2, 3, 4))
    for name, core in zip(layer.update.cores, mpo.balanced().cores, strict=True):
        torch.testing.assert_close(layer.update.cores[name].detach(), core)


def layer_ranks(layer):
    return [shape[-1] for shape in layer.update.network.shapes.values()][:-1]


@pytest.mark.parametrize("residual", [True, False])
def test_merged_layer_is_plain_and_gives_the_same_outputs(residual):
    layer = trained(residual)
    merged = layer.merged()
    assert type(merged) is torch.nn.Linear
    torch.testing.assert_close(merged(X), layer(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged(X[:1]), layer(X[:1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.base.weight, linear().weight)


def test_residual_is_the_same_function_of_the_cores():
    one, two = trained(residual=False), trained(residual=True)
    torch.testing.assert_close(two(X), one(X), rtol=1e-4, atol=1e-5)


def test_the_residual_is_formed_again_after_loading():
    source = trained(residual=True)
    target = NetworkLinear.from_linear(linear(), DoTAConfig(r=3, residual=True))
    target(X)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(X), source(X))
    assert not any("residual" in key for key in target.state_dict())


def test_the_residual_follows_the_base_weight_and_survives_inference_mode():
    one = NetworkLinear.from_linear(linear(), DoTAConfig(r=3))
    two = NetworkLinear.from_linear(linear(), DoTAConfig(r=3, residual=True))
    with torch.inference_mode():
        two(X)
    two(X).sum().backward()
    for layer in (one, two):
        with torch.no_grad():
            layer.base.weight.mul_(2)
    torch.testing.assert_close(two(X), one(X), rtol=1e-4, atol=1e-5)


def test_a_trained_base_weight_gets_its_gradient():
    layer = NetworkLinear.from_linear(linear(), DoTAConfig(r=3))
    layer.base.weight.requires_grad_(True)
    layer(X).sum().backward()
    torch.testing.assert_close(layer.base.weight.grad, X.sum(0).expand(36, -1))


@pytest.mark.parametrize("shape", [(24,), (0, 24), (2, 0, 24), (2, 30, 24)])
def test_any_batch_shape(shape):
    layer = trained()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.merged()(x), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_layer_keeps_float32_cores_and_starts_at_its_outputs():
    base = linear().bfloat16()
    layer = NetworkLinear.from_linear(copy.deepcopy(base), DoTAConfig(r=3))
    assert all(core.dtype == torch.float32 for core in layer.update.cores.values())
    x = X.bfloat16()
    assert torch.equal(layer(x), base(x))
    assert layer(x).dtype == torch.bfloat16


def test_an_own_network_in_plain_torch():
    lora = Network(
        (Core("a", ("bond", "in")), Core("b", ("out", "bond"))),
        {"in": 24, "out": 36, "bond": 2},
        out_legs=("out",),
        in_legs=("in",),
    )
    layer = NetworkLinear(linear(), lora, {"a": torch.randn(2, 24), "b": torch.zeros(36, 2)})
    assert torch.equal(layer(X[:1]), linear()(X[:1]))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == [
        "update.a",
        "update.b",
    ]
    assert "a: 2x24, b: 36x2, trainable=120" in repr(layer)


def test_state_survives_saving_and_loading():
    layer = trained()
    other = NetworkLinear.from_linear(linear(), DoTAConfig(r=3, init_weights="saved"))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X))


def test_what_does_not_fit_is_refused():
    network = DoTAConfig(r=2).network(Site("", 8, 8))
    with pytest.raises(ValueError, match="the network is 8 x 8, the layer 36 x 24"):
        NetworkLinear(linear(), network, {})
    with pytest.raises(TypeError, match=r"torch.nn.Linear, got Conv2d"):
        NetworkLinear(torch.nn.Conv2d(1, 1, 1), network, {})
    small = DoTAConfig(r=2).network(Site("", 36, 24))
    with pytest.raises(ValueError, match="initial cores have shapes"):
        NetworkLinear(linear(), small, {"core_0": torch.ones(1)})


@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("config", [DoTAConfig(r=2), LoTRConfig(r=2), LoRETTAConfig(dropout=0.0)])
def test_function_transforms_and_second_derivatives_see_plain_operations(config, tokens):
    torch.manual_seed(0)
    layer = NetworkLinear.from_linear(torch.nn.Linear(16, 24), config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    values = dict(layer.named_parameters())

    def loss(values, x):
        return torch.func.functional_call(layer, values, (x,)).square().sum()

    found = torch.func.grad(loss)(values, x.detach())
    trained = {name: value for name, value in values.items() if value.requires_grad}
    (layer(x).square().sum()).backward()
    for name, value in trained.items():
        torch.testing.assert_close(found[name], value.grad)
    mapped = torch.func.vmap(layer)(x.detach()[:, None])
    torch.testing.assert_close(mapped[:, 0], layer(x.detach()))
    if tokens == 3:
        assert torch.autograd.gradgradcheck(layer, (x,))


def test_a_dense_layer_computes_in_the_dtype_of_its_weight_whatever_it_has_besides():
    linear = torch.nn.Linear(64, 64)
    linear.compute_dtype = torch.bfloat16
    layer = NetworkLinear.from_linear(linear, DoTAConfig(r=4))
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), linear(x))
