"""Every method against its formula, written out independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tnlib_adapters.declarations import TERMS
from tests.tolerances import assert_close
from tnlib_adapters import (
    DoTAConfig,
    FusedProjection,
    LoRETTAConfig,
    LoRTAConfig,
    LoTRConfig,
    NetworkLinear,
    SharedCores,
    Site,
)
from tnlib_adapters.layers.update import Update

WIDTHS = st.sampled_from([6, 8, 12, 24, 36])


def filled(network, seed):
    """Random cores of a declaration in double precision, by key."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in network.shapes.items()
    }


def update_of(network, cores):
    """The trainable form of a network with given cores, shared ones included."""
    shared = SharedCores()
    update = Update(network, shared, dtype=torch.float64)
    update.set_initial(cores)
    return update


PLAIN = st.sampled_from(["q", "k", "v", "o", ""])


@st.composite
def sites(draw, role=PLAIN):
    heads = draw(st.sampled_from([1, 2, 4]))
    kv_heads = draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0]))
    head, hidden = draw(st.sampled_from([2, 3])), 12
    chosen = draw(role)
    out = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
    depth = draw(st.integers(1, 3))
    shape = {
        "o": (hidden, heads * head),
        "": (draw(WIDTHS), hidden),
        "qkv": ((heads + 2 * kv_heads) * head, hidden),
    }
    rows, columns = shape.get(chosen) or (out[chosen], hidden)
    return Site(
        f"layers.0.{chosen or 'up'}",
        rows,
        columns,
        path=chosen or "up",
        container="layers",
        layer=draw(st.integers(0, depth - 1)),
        depth=depth,
        role=chosen,
        matrix="qkvo".find(chosen[:1]) if chosen else 0,
        n_matrices=4,
        heads=heads,
        kv_heads=kv_heads,
        interleaved=draw(st.booleans()),
    )


CONFIGS = st.sampled_from(
    [
        DoTAConfig(r=3),
        LoTRConfig(r=3, alpha=2.0),
        LoRTAConfig(r=3),
        LoRTAConfig(r=2, heads="output", use_rslora=True),
        LoRETTAConfig(tt_rank=2, bottleneck=4),
        LoRETTAConfig(tt_rank=3, bottleneck=32),
    ]
)


@settings(max_examples=30)
@given(CONFIGS, sites(), st.integers(0, 5), st.integers(0, 9))
def test_one_update_in_all_its_forms(config, site, tokens, seed):
    network = config.network(site)
    update = update_of(network, filled(network, seed))
    for core in update.cores.values():
        core.data.add_(0.1)
    delta = update.delta().detach()
    assert delta.shape == (site.out_features, site.in_features)
    assert_close(update.view().to_dense(), delta, TERMS)
    x = torch.randn(tokens, site.in_features, dtype=torch.float64)
    applied = network.apply(x, update.cores, update.anchor)
    assert_close(applied, x @ delta.T, TERMS)
    assert network.n_params == sum(p.numel() for p in update.cores.values())


@settings(max_examples=30)
@given(CONFIGS, sites(), st.integers(0, 9))
def test_views_carry_gradients_to_the_parameters(config, site, seed):
    network = config.network(site)
    update = update_of(network, filled(network, seed))
    seed_matrix = torch.randn(site.out_features, site.in_features, dtype=torch.float64)
    leaves = list(update.cores.values())
    through = torch.autograd.grad((update.view().to_dense() * seed_matrix).sum(), leaves)
    direct = torch.autograd.grad((update.delta() * seed_matrix).sum(), leaves)
    for a, b in zip(through, direct, strict=True):
        assert_close(a, b, TERMS)


@given(
    st.sampled_from([LoTRConfig(r=3), LoRTAConfig(r=3), LoRETTAConfig(tt_rank=2)]),
    sites(st.sampled_from(["q", "k", "v", "o", "", "qkv"])),
)
def test_the_start_is_exactly_zero_and_a_gradient_leaves_it(config, site):
    network = config.network(site)
    cores = {key: core.requires_grad_() for key, core in config.initial_cores(network).items()}
    delta = network.delta(cores)
    assert not delta.any()
    (delta * torch.randn(delta.shape)).sum().backward()
    assert any(core.grad.ne(0).any() for core in cores.values())


@given(sites(), st.integers(1, 4), st.integers(0, 9))
def test_lotr_is_its_formula(site, r, seed):
    network = LoTRConfig(r=r, alpha=3.0).network(site)
    cores = filled(network, seed)
    group = f"{site.out_features}x{site.in_features}"
    u, g, v = cores[f"u_{group}"], cores["g"], cores[f"v_{group}"]
    torch.testing.assert_close(network.delta(cores), 3 / r * u @ g @ v.T)


def lorta_blocks(config, site, role, cores, out, columns, kv):
    """LoRTA head by head: (alpha / r) A diag(C_h C_m C_l) B^T."""
    on_output = config.heads == "output" or (config.heads == "auto" and role != "o")
    heads = kv if on_output and role in "kv" else site.heads
    cut, whole = (out, columns) if on_output else (columns, out)
    a, b = cores[f"a_attention_{whole}"], cores[f"b_attention_{cut // heads}"]
    c_h = cores[f"c_head_attention_{heads}"]
    rest = cores["c_layer_attention"][site.layer] * cores["c_matrix_attention"]["qkvo".index(role)]
    blocks = [a @ torch.diag(c_h[h] * rest) @ b.T for h in range(heads)]
    stacked = torch.cat(blocks, 1)
    return config.alpha / config.r * (stacked.T if on_output else stacked)


@given(
    sites(st.sampled_from(["q", "k", "v", "o"])),
    st.sampled_from(["auto", "output", "input"]),
    st.integers(0, 9),
)
def test_lorta_is_its_formula(site, heads, seed):
    config = LoRTAConfig(r=3, heads=heads)
    on_output = heads == "output" or (heads == "auto" and site.role != "o")
    cut = site.out_features if on_output else site.in_features
    count = site.kv_heads if on_output and site.role in "kv" else site.heads
    if cut % count:
        with pytest.raises(ValueError, match="heads do not divide"):
            config.network(site)
        return
    network = config.network(site)
    cores = filled(network, seed)
    expected = lorta_blocks(
        config, site, site.role, cores, site.out_features, site.in_features, site.kv_heads
    )
    torch.testing.assert_close(network.delta(cores), expected)


@given(sites(st.just("qkv")), st.integers(0, 9))
def test_a_fused_projection_has_the_rows_of_its_roles(site, seed):
    config = LoRTAConfig(r=3)
    network = config.network(site)
    assert isinstance(network, FusedProjection)
    cores = filled(network, seed)
    head = site.out_features // (site.heads + 2 * site.kv_heads)
    roles = {
        role: lorta_blocks(config, site, role, cores, n * head, site.in_features, site.kv_heads)
        for role, n in (("q", site.heads), ("k", site.kv_heads), ("v", site.kv_heads))
    }
    if site.interleaved:
        share = site.heads // site.kv_heads * head
        rows = [
            part
            for g in range(site.kv_heads)
            for part in (
                roles["q"][g * share : (g + 1) * share],
                roles["k"][g * head : (g + 1) * head],
                roles["v"][g * head : (g + 1) * head],
            )
        ]
    else:
        rows = list(roles.values())
    torch.testing.assert_close(network.delta(cores), torch.cat(rows))
    x = torch.randn(4, site.in_features, dtype=torch.float64)
    torch.testing.assert_close(network.apply(x, cores), x @ torch.cat(rows).T)


def dense_train(cores, name):
    """The tensor that the cores of one train stand for, by tensorly, as one vector."""
    keys = sorted(
        (k for k in cores if k.startswith(name) and k[-1].isdigit()),
        key=lambda k: int(k.split("_")[1]),
    )
    three = [c.numpy().reshape(c.shape[0], -1, c.shape[-1]) for c in (cores[k] for k in keys)]
    return torch.from_numpy(np.asarray(tensorly.tt_to_tensor(three)).reshape(-1))


SHAPES = [
    None,
    ([24, 4], [4, 36]),
    ([8, 12], [12, 12]),  # one mode of the input and of the bottleneck at once
    ([2, 4, 3, 2, 2], [2, 2, 4, 9]),
    ([1, 24, 4], [4, 36, 1]),
]


@given(st.sampled_from(SHAPES), st.integers(1, 3), st.integers(0, 9))
def test_rep_is_two_tensor_trains(shapes, rank, seed):
    config = LoRETTAConfig(tt_rank=rank, bottleneck=4, alpha=6.0, shapes=shapes)
    network = config.network(Site("q", 36, 24))
    cores = filled(network, seed)
    down, up = dense_train(cores, "down").reshape(24, 4), dense_train(cores, "up").reshape(4, 36)
    torch.testing.assert_close(network.delta(cores), 6 / 4 * (down @ up).T)


@given(st.sampled_from(["q_proj", "gate_proj"]), st.integers(0, 9))
def test_adp_is_a_bottleneck_on_its_side(name, seed):
    network = LoRETTAConfig(variant="adp", bottleneck=4, alpha=2.0).network(Site(name, 36, 24))
    h = torch.randn(5, 24 if name == "gate_proj" else 36, dtype=torch.float64)
    cores = filled(network, seed)
    width = h.shape[1]
    down = dense_train(cores, "down").reshape(width, 4)
    up = dense_train(cores, "up").reshape(4, width)
    inner = torch.relu(h @ down + cores["down_bias"])
    expected = h + 0.5 * (inner @ up + cores["up_bias"])
    torch.testing.assert_close(network.shift(h, cores, training=False), expected)
    assert network.side == ("input" if name == "gate_proj" else "output")


def test_default_modes_follow_the_width():
    def modes(width, out):
        network = LoRETTAConfig(variant="adp", bottleneck=out).network(Site("x", width, 8)).down
        return [math.prod(shape[1:-1]) for shape in network.shapes.values()]

    assert modes(768, 64) == [8, 8, 12, 8, 8]
    assert modes(768, 8) == [8, 8, 12, 8]
    assert modes(4096, 64) == [16, 16, 16, 8, 8]
    assert modes(3072, 16) == [12, 16, 16, 16]


@pytest.mark.parametrize("config", [DoTAConfig(), LoRETTAConfig()])
def test_a_prime_width_works_and_says_that_nothing_is_gained(config):
    layer = torch.nn.Linear(97, 64)
    with pytest.warns(UserWarning, match=r"97 has no factors, so its modes are \(1, 97\)|1, 1, 97"):
        adapted = NetworkLinear.from_linear(layer, config)
    x = torch.randn(3, 97)
    assert torch.equal(adapted(x), layer(x))


@pytest.mark.parametrize("width", [97, 101])
def test_lotr_and_lorta_take_any_width_as_it_is(width):
    for config in (LoTRConfig(), LoRTAConfig()):
        adapted = NetworkLinear.from_linear(torch.nn.Linear(width, 64), config)
        assert adapted.delta_weight().shape == (64, width)


def deviation(config, site, of):
    drawn = [of(config.initial_cores(config.network(site))) for _ in range(40)]
    return float(torch.cat([x.reshape(-1) for x in drawn]).std())


def test_published_starts_have_their_variances():
    torch.manual_seed(0)
    site = Site("layers.0.q", 768, 768, role="q", depth=12, n_matrices=4, heads=12, kv_heads=12)
    group = "u_768x768"
    assert deviation(LoTRConfig(init="normal"), site, lambda c: c[group]) == pytest.approx(
        1, rel=0.02
    )
    scaled = deviation(LoTRConfig(), site, lambda c: c[group])
    assert scaled == pytest.approx(768**-0.5, rel=0.02)
    config = LoRTAConfig(r=8)
    # A uniform distribution of half-width w has the deviation w / sqrt(3).
    a = deviation(config, site, lambda c: c["a_attention_768"])
    assert a == pytest.approx((8 * 3) ** -0.5, rel=0.02)
    assert deviation(config, site, lambda c: c["c_layer_attention"]) == pytest.approx(0.5, rel=0.05)
    gaussian = LoRETTAConfig(init="gaussian")
    down = deviation(gaussian, site, lambda c: dense_train(c, "down"))
    assert down == pytest.approx((768 + 8) ** -0.5, rel=0.2)
    assert deviation(gaussian, site, lambda c: c["up_3"]) > 0


def test_init_weights_false_is_no_identity():
    torch.manual_seed(0)
    site = Site("layers.0.q", 48, 48, role="q", n_matrices=4, heads=4, kv_heads=2)
    for config in (LoTRConfig, LoRTAConfig, LoRETTAConfig):
        chosen = config(init_weights=False)
        network = chosen.network(site)
        assert network.delta(chosen.initial_cores(network)).abs().max() > 0
