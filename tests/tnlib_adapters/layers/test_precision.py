"""Half precision around float32 cores."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import make
from tnlib_adapters import DoTAConfig, NetworkLinear
from tnlib_adapters.execution.strategies import choose_strategy
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_autocast_does_not_round_away_the_difference_of_dota():
    torch.manual_seed(0)
    layer = NetworkLinear.from_linear(torch.nn.Linear(96, 96), DoTAConfig(r=2, dims=2))
    with torch.no_grad():
        for core in layer.update.stored.values():
            core.add_(1e-4 * torch.randn_like(core))
    x = torch.randn(4, 96)
    assert choose_strategy(layer.update.network, "none", 4, training=True).name == "activations"
    with torch.autocast("cpu", torch.bfloat16):
        update = layer.update.network.transform_output(x, torch.zeros(4, 96), layer.update)
    expected = x @ layer.delta_weight().T
    assert (update - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("method", MERGEABLE)
def test_updates_and_merges_under_autocast_are_those_without(method):
    config = METHODS[method](target_modules="all-linear", init_weights=False)
    model = peft.get_peft_model(make("gpt2"), config)
    layers = [m for m in model.modules() if isinstance(m, NetworkLayer)]
    expected = [layer.get_delta_weight("default") for layer in layers]
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        found = [layer.get_delta_weight("default") for layer in layers]
        again = model.merge_and_unload().state_dict()
    assert layers
    assert all(map(torch.equal, found, expected))
    assert all(torch.equal(again[name], value) for name, value in merged.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_base_of_two_dtypes_keeps_its_cores_in_one(method):
    model = make("llama", torch.bfloat16)
    model.model.layers[0].mlp.float()
    config = METHODS[method](target_modules=["q_proj", "down_proj"], init_weights=False)
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    cores = [p for n, p in adapted.named_parameters() if config.method in n and p.requires_grad]
    assert {core.dtype for core in cores} == {torch.float32}


@pytest.mark.parametrize("method", ["lotr", "lorta", "dota"])
def test_merged_adapters_are_reported_alike_by_all_modules(method):
    model = peft.get_peft_model(make("llama"), METHODS[method](target_modules=["q_proj"]))
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    model.unmerge_adapter()
    assert model.get_model_status().merged_adapters == []
