"""The state of one adapter: values that are missing are named, and what is fixed stays."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.tnlib_adapters.declarations import LORA, random_cores
from tnlib_adapters import Core, DoTAConfig, LoRETTAConfig, Network, NetworkLinear, Site
from tnlib_adapters.execution.base_weight import DenseWeight
from tnlib_adapters.fourbit.packed import Format, PackedWeight
from tnlib_adapters.layers.update import Update
from tnlib_adapters.networks.builders import mpo_network

OPERATOR = mpo_network((2, 3), (4, 2), (1, 2, 1), anchored=True, residual=True)


def made(network):
    update = Update(network, dtype=torch.float64)
    update.set_initial(random_cores(network))
    return update


def test_cores_that_were_never_set_are_named():
    update = Update(LORA)
    with pytest.raises(RuntimeError, match="the cores a, b were allocated but never loaded"):
        update.check_initialized()
    update.set_initial({key: core.float() for key, core in random_cores(LORA).items()})
    update.check_initialized()


def test_cores_that_a_file_lacks_are_named():
    update, full = Update(LORA, dtype=torch.float64), made(LORA)
    state = full.state_dict()
    del state["b"]
    update.load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match="the cores b were allocated"):
        update.check_initialized()
    update.load_state_dict(full.state_dict())
    update.check_initialized()


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"initial cores have shapes .* the network needs"):
        Update(LORA).set_initial({"a": torch.zeros(2, 7), "b": torch.zeros(5, 3)})


def test_a_core_cannot_have_the_name_of_an_attribute():
    cores = Core("cores", ("out", "in")), Core("b", ("in",))
    with pytest.raises(ValueError, match="a core cannot be called 'cores'"):
        Update(Network(cores, {"out": 2, "in": 2}, ("out",), ("in",)))


def test_the_anchor_is_the_start_and_does_not_train():
    update = made(OPERATOR)
    assert not update.delta().any()
    assert [name for name, _ in update.named_parameters()] == ["core_0", "core_1"]
    with torch.no_grad():
        update.cores["core_0"].add_(1.0)
    assert update.delta().any()
    anchor = random_cores(OPERATOR)
    assert all(torch.equal(update.anchor[key], anchor[key]) for key in anchor)


def test_what_is_fixed_beside_the_cores_is_the_weight_less_the_start():
    update = made(OPERATOR)
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    fixed, anchor = update.base_and_anchor(DenseWeight(weight))
    assert anchor is None
    removed = OPERATOR.unanchored.delta(update.anchor)
    assert torch.equal(fixed.weight, weight - removed)
    # Once per weight: it is formed again when the weight changes.
    assert update.base_and_anchor(DenseWeight(weight))[0].weight is fixed.weight
    weight.add_(1.0)
    assert torch.equal(update.base_and_anchor(DenseWeight(weight))[0].weight, weight - removed)


def test_over_a_packed_weight_the_anchor_is_subtracted_from_the_cores():
    update = made(OPERATOR)
    packed = PackedWeight.of(torch.randn(6, 8), Format())
    fixed, anchor = update.base_and_anchor(packed)
    assert fixed is packed
    assert anchor.keys() == update.cores.keys()


def test_copies_start_without_what_was_computed():
    layer = NetworkLinear.from_linear(torch.nn.Linear(8, 6), DoTAConfig(r=2, residual=True)).eval()
    layer.update.compute_cached(layer.base)
    layer.update.base_and_anchor(DenseWeight(layer.base.weight))
    twin = copy.deepcopy(layer)
    assert layer.update.has_cached_update
    assert not twin.update.has_cached_update
    assert twin.update._residual is None


@pytest.mark.parametrize(
    ("config", "title"),
    [
        (LoRETTAConfig(variant="adp", bottleneck=4), "bottleneck adapter"),
        (LoRETTAConfig(tt_head=True), "replaced layer"),
    ],
)
def test_what_is_no_update_of_the_weight_says_what_to_set(config, title):
    network = config.network(Site("pooler.dense", 16, 16))
    message = f"a {title} is not a change of the weight.*variant='rep' without tt_head"
    for form in (Update.delta, Update.view):
        with pytest.raises(TypeError, match=message):
            form(Update(network))
