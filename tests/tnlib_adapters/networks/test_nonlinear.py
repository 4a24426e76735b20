"""Adapters that are no update of a weight are their formulas, on the side that they are on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.tnlib_adapters.declarations import random_cores
from tests.tolerances import assert_close
from tnlib_adapters import BottleneckAdapter, Core, Network, ReplacedLinear


def linear(name, out, width):
    sizes = {"in": width, "out": out, "r": 3}
    cores = Core(f"{name}_a", ("r", "in")), Core(f"{name}_b", ("out", "r"))
    return Network(cores, sizes, ("out",), ("in",))


def state(cores, cached=None):
    return SimpleNamespace(cores=cores, anchor=None, cached_update=cached, training=False)


def random_state(declaration, *, cached):
    cores = random_cores(declaration)
    maps = SimpleNamespace(maps=declaration.maps(cores)) if cached else None
    return state(cores, maps)


X = torch.randn(4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.randn(4, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_bottleneck_is_added_on_its_side_and_leaves_the_other(side, cached):
    adapter = BottleneckAdapter(linear("down", 5, 12), linear("up", 12, 5), side, scale=0.5)
    values = random_state(adapter, cached=cached)
    cores = values.cores

    def formula(h):
        hidden = torch.relu(h @ adapter.down.delta(cores).mT + cores["down_bias"])
        return h + 0.5 * (hidden @ adapter.up.delta(cores).mT + cores["up_bias"])

    entered, left = adapter.transform_input(X, values), adapter.transform_output(X, Y, values)
    assert_close(entered, formula(X) if side == "input" else X, operations=12 * 3 * 5)
    assert_close(left, formula(Y) if side == "output" else Y, operations=12 * 3 * 5)


@pytest.mark.parametrize("cached", [False, True])
def test_a_replaced_layer_is_its_network_with_a_bias_whatever_the_base_gives(cached):
    layer = ReplacedLinear(linear("head", 7, 12))
    values = random_state(layer, cached=cached)
    expected = X @ layer.network.delta(values.cores).mT + values.cores["bias"]
    assert torch.equal(layer.transform_input(X, values), X)
    assert_close(layer.transform_output(X, X[:, :7], values), expected, operations=12 * 3)


def test_half_precision_activations_keep_their_dtype():
    adapter = BottleneckAdapter(linear("down", 5, 12), linear("up", 12, 5))
    cores = {key: core.float() for key, core in random_cores(adapter).items()}
    found = adapter.shift(X.bfloat16(), cores, training=False)
    assert found.dtype == torch.bfloat16


def test_neither_is_an_update_of_a_weight_or_fused_with_the_base():
    adapter = BottleneckAdapter(linear("down", 5, 12), linear("up", 12, 5))
    for declaration in (adapter, ReplacedLinear(linear("head", 7, 12))):
        assert not declaration.additive
        assert declaration.forward_with_base(X, None, None, state({})) is None


@pytest.mark.parametrize(
    ("side", "widths", "message"),
    [
        ("input", (12, 9), "maps 12 to 12 features, the layer's input has 9"),
        ("output", (9, 12), "maps 12 to 12 features, the layer's output has 9"),
    ],
)
def test_another_width_on_its_side_is_refused(side, widths, message):
    adapter = BottleneckAdapter(linear("down", 5, 12), linear("up", 12, 5), side)
    with pytest.raises(ValueError, match=message):
        adapter.check_fits(*widths)
    adapter.check_fits(*widths[::-1])
