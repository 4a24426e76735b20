"""What is read from a model: layers, roles, heads."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from tests.tnlib_adapters.models import MAKERS
from tnlib_adapters import find_sites

ROLES = {
    "bert": {"q": "attention.self.query", "o": "attention.output.dense"},
    "deberta": {"qkv": "attention.self.in_proj", "o": "attention.output.dense"},
    "gpt2": {"qkv": "attn.c_attn", "o": "attn.c_proj"},
    "llama": {"k": "self_attn.k_proj", "o": "self_attn.o_proj"},
    "phi3": {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj"},
    "qwen2": {"v": "self_attn.v_proj", "o": "self_attn.o_proj"},
    "roberta": {"v": "attention.self.value", "o": "attention.output.dense"},
    "vit": {"q": "attention.q_proj", "o": "attention.o_proj"},
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_layers_and_heads_of_an_architecture(name):
    with torch.device("meta"):
        sites = find_sites(MAKERS[name]())
    layers = [site for site in sites.values() if site.stack]
    assert {site.layer for site in layers} == {0, 1}
    assert {site.depth for site in layers} == {2}
    for role, path in ROLES[name].items():
        found = [site for site in layers if site.role == role]
        assert [site.path for site in found] == [path, path]
        assert {site.slots for site in found} == {4}
    kv_heads = 2 if name in ("llama", "phi3", "qwen2") else 4
    assert {(site.heads, site.kv_heads) for site in layers} == {(4, kv_heads)}
    assert {site.interleaved for site in layers if site.role == "qkv"} <= {name == "deberta"}
    outside = [site for site in sites.values() if not site.stack]
    assert all(not site.role and site.depth == 1 for site in outside)


def test_two_attentions_in_a_layer_and_two_stacks():
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=4, num_layers=2, num_decoder_layers=3, num_heads=4)
        )
    sites = find_sites(model)
    queries = [site for site in sites.values() if site.role == "q"]
    assert len(queries) == 8
    assert {site.slots for site in queries} == {8}
    assert len({(site.layer, site.slot) for site in queries}) == 8
    assert {site.depth for site in queries} == {5}
    assert {site.role for site in sites.values() if site.path.endswith("wo")} == {""}


def test_weights_of_equal_widths_in_a_layer_are_numbered():
    with torch.device("meta"):
        sites = find_sites(MAKERS["llama"]())
    slots = {site.path: site.slot for site in sites.values() if "mlp" in site.path}
    assert slots == {"mlp.gate_proj": 0, "mlp.up_proj": 1, "mlp.down_proj": 2}


def test_a_plain_model_without_a_configuration():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    sites = find_sites(model)
    assert [(s.name, s.heads, s.depth) for s in sites.values()] == [("0", 1, 1), ("1", 1, 1)]


def test_adapted_and_bypassed_layers():
    import peft

    from tnlib_adapters import LoTRConfig

    model = torch.nn.ModuleDict(
        {"attention": torch.nn.MultiheadAttention(8, 2), "out": torch.nn.Linear(8, 4)}
    )
    before = find_sites(model)
    assert list(before) == ["out"]
    adapted = peft.get_peft_model(model, LoTRConfig(target_modules=["out"]))
    assert find_sites(adapted.base_model.model) == before
