"""Weights of experts in models: what they are, and which of them a router chooses."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.nn import functional

from tests.tnlib_adapters.expert_models import mixture, whole_model
from tests.tnlib_adapters.models import make
from tnlib_adapters import LoTRConfig, find_expert_sites, routing_counts
from tnlib_adapters.base_model.expert_parameters import expert_parameters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.arange(3, 14)[None]


@pytest.mark.parametrize("kind", ["Qwen3Moe", "GptOss", "DeepseekV3"])
def test_a_part_of_a_fused_weight_computes_that_part(kind):
    """Rows of gate and up are those that the module's own gating takes for them."""
    model = whole_model(kind)
    found = expert_parameters(model)
    name = next(name for name in found if name.endswith("gate_up_proj"))
    experts = model.get_submodule(found[name].module)
    matrices = experts.gate_up_proj.mT if found[name].transposed else experts.gate_up_proj
    x = torch.randn(2, matrices.shape[2])
    both = functional.linear(x, matrices[0])
    gate, up = (
        both[:, found[name.replace("gate_up_proj", part)].rows] for part in ("gate_proj", "up_proj")
    )
    zero_gate, zero_up = both.clone(), both.clone()
    zero_gate[:, found[name.replace("gate_up_proj", "gate_proj")].rows] = 0
    zero_up[:, found[name.replace("gate_up_proj", "up_proj")].rows] = 0
    assert gate.shape == up.shape == (2, 24)
    # A gate of zero lets nothing through; up of zero does so where nothing is added to it.
    assert not experts._apply_gate(zero_gate).any()
    assert experts._apply_gate(zero_up).any() == (kind == "GptOss")


def test_sites_say_layer_and_kind():
    sites = find_expert_sites(whole_model("DeepseekV3"))
    assert [name.rsplit(".", 1)[-1] for name in sites] == [
        "gate_up_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    for site in sites.values():
        assert (site.layer, site.depth, site.experts) == (1, 2, 8)
    kinds = {name.rsplit(".", 1)[-1]: site for name, site in sites.items()}
    # Gate, up and down have one pair of widths, the fused weight another.
    assert [kinds[k].n_matrices for k in kinds] == [1, 3, 3, 3]
    assert len({kinds[k].matrix for k in ("gate_proj", "up_proj", "down_proj")}) == 3


def test_adapted_models_have_the_sites_of_the_base():
    model = mixture("Qwen3MoeExperts", "eager")
    before = find_expert_sites(model)
    peft.get_peft_model(model, LoTRConfig(target_parameters="all-experts"))
    assert find_expert_sites(model) == before


@pytest.mark.parametrize("adapted", [False, True])
def test_routing_is_counted(adapted):
    model = whole_model("Qwen3Moe")
    chosen = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(
            lambda _, __, result, number=number: chosen.setdefault(number, []).append(result[-1])
        )
    given = model
    if adapted:
        given = peft.get_peft_model(model, LoTRConfig(target_parameters="all-experts"))
    given.train()
    counts = routing_counts(given, [{"input_ids": IDS}, {"input_ids": IDS + 1}])
    assert given.training
    prefix = "base_model.model." if adapted else ""
    for number, indices in chosen.items():
        expected = torch.bincount(torch.cat(indices).flatten(), minlength=8)
        found = counts[f"{prefix}model.layers.{number}.mlp.experts"]
        assert torch.equal(found, expected)
        assert found.sum() == 2 * 2 * IDS.numel()


def test_the_most_used_experts_are_adapted():
    model = whole_model("Qwen3Moe")
    counts = routing_counts(model, [{"input_ids": IDS}])
    most = {name: count.topk(3).indices.tolist() for name, count in counts.items()}
    config = LoTRConfig(r=4, target_parameters="all-experts", experts=most)
    adapted = peft.get_peft_model(model, config)
    shapes = {p.shape for n, p in adapted.named_parameters() if n.endswith(".g")}
    assert shapes == {(3, 4, 4)}
    adapted.base_model.model.model.layers[0].mlp.experts(
        torch.randn(2, 32),
        torch.tensor([most["model.layers.0.mlp.experts"][:2]] * 2),
        torch.ones(2, 2),
    )


def test_models_without_experts_are_refused():
    with pytest.raises(ValueError, match="no experts of transformers' experts interface"):
        routing_counts(make("llama"), [{"input_ids": IDS}])
    with pytest.raises(ValueError, match="batches is empty"):
        routing_counts(whole_model("Qwen3Moe"), [])
    with pytest.raises(TypeError, match="a batch must be a mapping"):
        routing_counts(whole_model("Qwen3Moe"), [IDS])
