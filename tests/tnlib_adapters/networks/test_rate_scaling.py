"""How far a step moves an update: as predicted, as it happens, and the multipliers made of it."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tnlib_adapters import Core, DoTAConfig, LoRTAConfig, Network, NetworkLinear, SharedCores, Site
from tnlib_adapters.methods.lora import CountedLoRA
from tnlib_adapters.networks.initializers import deviation, normal, uniform, zeros
from tnlib_adapters.networks.rate_scaling import (
    Product,
    declared_deviations,
    declared_multipliers,
    multipliers,
    products,
    reference_start,
    reference_step,
    started_multipliers,
    step_sizes,
)

SIZES = st.sampled_from([1, 2, 3, 8, 64])


def site(width, layers=1, layer=0, heads=4):
    name = f"layers.{layer}.q_proj"
    of_heads = {"heads": heads, "kv_heads": heads, "role": "q", "n_matrices": 4}
    return Site(name, width, width, container="layers", layer=layer, depth=layers, **of_heads)


@st.composite
def networks(draw):
    """Chains and stars of cores with up to 64 per bond, at random widths."""
    rows, columns = draw(st.sampled_from([(64,), (8, 9), (4, 4, 4)])), (32, 2)
    order = len(rows) + len(columns)
    legs = [f"out_{k}" for k in range(len(rows))] + [f"in_{k}" for k in range(len(columns))]
    sizes = dict(zip(legs, (*rows, *columns), strict=True))
    starts = [draw(st.sampled_from([normal(0.3), uniform(2.0), normal(1.5)])) for _ in legs]
    if draw(st.booleans()):  # one rank for all, as in CP
        sizes |= {"rank": draw(SIZES)}
        own = [(leg, "rank") for leg in legs]
    else:
        sizes |= {f"bond_{k}": draw(SIZES) if 0 < k < order else 1 for k in range(order + 1)}
        own = [(f"bond_{k}", leg, f"bond_{k + 1}") for k, leg in enumerate(legs)]
    cores = tuple(Core(f"c{k}", own[k], starts[k]) for k in range(order))
    outs, ins = legs[: len(rows)], legs[len(rows) :]
    scale = draw(st.sampled_from([0.25, 1.0, 3.0]))
    return Network(cores, sizes, tuple(outs), tuple(ins), scale=scale)


@given(networks(), st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_the_mean_square_of_a_step_is_the_predicted_one(network, which):
    """Over draws of cores and signs; the error of a mean is its deviation over the root of n."""
    core = network.cores[which % len(network.cores)]
    deviations = declared_deviations(network.cores)
    predicted = step_sizes(Product((network,)), deviations)[core.key] ** 2
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        cores = network.initial(generator)
        cores[core.key] = torch.randn(network.shapes[core.key], generator=generator).sign()
        found.append(network.delta(cores).square().mean())
    found = torch.stack(found).double()
    assert abs(found.mean() - predicted) <= 6 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize("r", [1, 8, 64])
@pytest.mark.parametrize("width", [64, 576, 4096])
def test_the_reference_has_no_multipliers(width, r):
    """PEFT's LoRA of rank 8 and alpha 16 is stored as it is; of other ranks A is."""
    network = CountedLoRA(r=r).network(Site("q", width, width))
    scaled = Network(network.cores, network.sizes, ("out",), ("in",), scale=16 / r)
    found = declared_multipliers(scaled)
    assert found["a"] == 1
    assert 2**-0.5 <= found["b"] / math.sqrt(r / 8) <= 2**0.5 * (1 + 1e-6)
    assert r != 8 or found["b"] == 1


def stepped(form, width, layers, rate=1e-6, **kwargs):
    """How far a first step of Adam moves the updates, in units of what it should."""
    torch.manual_seed(0)
    config, shared = METHODS[form](**kwargs), SharedCores()
    linears = [torch.nn.Linear(width, width).double() for _ in range(layers)]
    adapted = [
        NetworkLinear.from_linear(x, config, site=site(width, layers, k), shared=shared)
        for k, x in enumerate(linears)
    ]
    weights = {id(p): p for layer in adapted for p in layer.parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(weights.values(), lr=rate, eps=1e-30)
    loss = sum((layer.delta_weight() * torch.randn(width, width)).sum() for layer in adapted)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        squares = [layer.delta_weight().square().mean() for layer in adapted]
    own = adapted[0].update.declared
    others = 2 * len(own.cores) if own.anchored else len(own.cores) - 1
    expected = config.strength(site(width)) * reference_step(width) * rate * math.sqrt(others)
    return math.sqrt(float(torch.stack(squares).mean())) / expected


# Of LoRTA's factors for heads, layers and matrices a weight sees few numbers, the same for all; the
# cores of trains are small, so that their sizes vary with the start.
FEW = {"lorta": 4.0, "rep": 1.5}


@pytest.mark.parametrize("form", MERGEABLE)
@pytest.mark.parametrize(
    ("width", "layers"),
    [(64, 1), (1024, 1), (64, 80), pytest.param(4096, 1, marks=pytest.mark.slow)],
)
def test_a_first_step_moves_the_update_as_far_as_it_should(form, width, layers):
    """To the power of two next to it."""
    moved, few = stepped(form, width, layers), FEW.get(form, 1.25)
    assert 1 / math.sqrt(2) / few <= moved <= math.sqrt(2) * few


@pytest.mark.parametrize("form", MERGEABLE)
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_a_first_step_is_as_long_for_every_size(form, width, size):
    """To powers of two above and below."""
    field, few = METHODS[form]().size_field, FEW.get(form, 1.25)
    ratio = stepped(form, width, 16, **{field: size}) / stepped(form, width, 16, **{field: 4})
    assert 1 / 2 / few <= ratio <= 2 * few


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("place", ["gate_proj", "down_proj"])
@pytest.mark.parametrize("size", [0.1, 1.0, 8.0])
def test_a_series_adapter_moves_what_a_layer_gives_as_far_as_lora(place, size, biases):
    """On independent features, whatever the weight makes of them; its bias moves it by the rate."""
    torch.manual_seed(0)
    width, rate = 256, 1e-6
    linear = torch.nn.Linear(width, width, dtype=torch.float64)
    torch.nn.init.normal_(linear.weight, std=size / math.sqrt(width))
    config = METHODS["adp"]()
    layer = NetworkLinear.from_linear(linear, config, site=Site(f"mlp.{place}", width, width))
    x = torch.randn(1024, width, dtype=torch.float64)
    names = {name for name, p in layer.named_parameters() if p.requires_grad}
    trained = {name for name in names if name.endswith("_bias") == biases}
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in trained)
    (layer(x) * torch.randn_like(x)).sum().backward()
    weights = [p for p in layer.parameters() if p.requires_grad]
    torch.optim.Adam(weights, lr=rate, eps=1e-30).step()
    with torch.no_grad():
        moved = float((layer(x) - linear(x)).square().mean().sqrt())
    expected = reference_step(width) * math.sqrt(width) * math.sqrt(len(names) - 3) * rate
    ratio = moved / (rate if biases else expected)
    assert 2**-0.5 / 1.5 <= ratio <= 2**0.5 * 1.5


@pytest.mark.parametrize("form", MERGEABLE)
def test_other_cores_share_one_relative_change(form):
    network = METHODS[form]().network(site(256))
    (product,) = products(network)
    sizes = declared_deviations(network.cores)
    if network.anchored:
        cores = {key: value.double() for key, value in network.initial().items()}
        found = started_multipliers(network, cores)
        sizes = {key: float(value.square().mean().sqrt()) for key, value in cores.items()}
        exact = reference_step(256) * math.sqrt(2)
        steps = {k: found[k] * step for k, step in step_sizes(product, sizes).items()}
    else:
        found = declared_multipliers(network)
        others = [key for key, size in sizes.items() if size]
        steps = {key: found[key] / sizes[key] for key in others}
        exact = 1 / reference_start(256) / len(others)
    assert steps
    for step in steps.values():
        assert 2**-0.5 * (1 - 1e-6) <= step / exact <= 2**0.5 * (1 + 1e-6)


@pytest.mark.parametrize("form", sorted(METHODS))
def test_alpha_multiplies_the_step(form):
    config = METHODS[form]()
    if not hasattr(config, "alpha"):
        assert config.strength(site(64)) == 1
        return
    default = next(f.default for f in config.__dataclass_fields__.values() if f.name == "alpha")
    default = METHODS[form](alpha=default).alpha
    for factor in (0.5, 1, 3):
        strong = METHODS[form](alpha=factor * default)
        assert strong.strength(site(64)) == pytest.approx(factor)
    assert METHODS[form](rate_scaling=False).strength(site(64)) is None


def test_rslora_multiplies_the_step_by_the_root_of_the_rank():
    assert LoRTAConfig(r=16, use_rslora=True).strength(site(64)) == pytest.approx(4)


# What is stored as a distance is added to the anchor.
FACTORS = [form for form in MERGEABLE if not METHODS[form]().network(site(64)).anchored]


@pytest.mark.parametrize("form", FACTORS)
def test_both_parametrisations_are_one_function_bit_for_bit(form):
    network = METHODS[form]().network(site(64))
    factors = declared_multipliers(network)
    cores = network.initial(torch.Generator().manual_seed(0), zeros=False)
    stored = {key: value / factors[key] for key, value in cores.items()}
    assert any(factor != 1 for factor in factors.values())
    assert torch.equal(network.rescaled(factors).delta(stored), network.delta(cores))
    x = torch.randn(5, 64)
    assert torch.equal(network.rescaled(factors).apply(x, stored), network.apply(x, cores))


def test_frozen_cores_have_no_multiplier():
    cores = (
        Core("a", ("r", "in"), normal(), frozen=True),
        Core("d", ("r",), uniform(0.1)),
        Core("b", ("out", "r"), zeros),
    )
    network = Network(cores, {"r": 4, "in": 8, "out": 8}, ("out",), ("in",))
    assert set(declared_multipliers(network)) == {"d", "b"}


def test_an_update_that_is_zero_whatever_its_cores_are_is_stored_as_it_is():
    cores = (Core("a", ("r", "in"), normal()), Core("b", ("out", "r"), zeros))
    network = Network(cores, {"r": 4, "in": 8, "out": 8}, ("out",), ("in",), scale=0.0)
    assert declared_multipliers(network)["b"] == 1


@pytest.mark.parametrize("start", [zeros, normal(0.3), uniform(0.3)])
def test_the_deviation_of_a_start_is_that_of_its_entries(start):
    entries = start.draw((1000, 100), torch.Generator().manual_seed(0))
    assert float(entries.square().mean().sqrt()) == pytest.approx(deviation(start), rel=0.01)


def test_multipliers_are_powers_of_two():
    network = DoTAConfig(r=4).network(site(64))
    sizes = dict.fromkeys(network.shapes, 0.123)
    found = multipliers(Product((network,)), sizes, strength=0.7)
    assert all(math.frexp(factor)[0] == 0.5 for factor in found.values())
