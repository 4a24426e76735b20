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
    layers = [site for site in sites.values() if site.container]
    assert {site.layer for site in layers} == {0, 1}
    assert {site.depth for site in layers} == {2}
    for role, path in ROLES[name].items():
        found = [site for site in layers if site.role == role]
        assert [site.path for site in found] == [path, path]
        assert {site.n_matrices for site in found} == {4}
    kv_heads = 2 if name in ("llama", "phi3", "qwen2") else 4
    assert {(site.heads, site.kv_heads) for site in layers} == {(4, kv_heads)}
    assert {site.interleaved for site in layers if site.role == "qkv"} <= {name == "deberta"}
    outside = [site for site in sites.values() if not site.container]
    assert all(not site.role and site.depth == 1 for site in outside)


def test_two_attentions_in_a_layer_and_two_stacks():
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=16, d_kv=4, num_layers=2, num_decoder_layers=3, num_heads=4)
        )
    sites = find_sites(model)
    queries = [site for site in sites.values() if site.role == "q"]
    assert len(queries) == 8
    assert {site.n_matrices for site in queries} == {8}
    assert len({(site.layer, site.matrix) for site in queries}) == 8
    assert {site.depth for site in queries} == {5}
    assert {site.role for site in sites.values() if site.path.endswith("wo")} == {""}


def test_weights_of_equal_widths_in_a_layer_are_numbered():
    with torch.device("meta"):
        sites = find_sites(MAKERS["llama"]())
    numbers = {site.path: site.matrix for site in sites.values() if "mlp" in site.path}
    assert numbers == {"mlp.gate_proj": 0, "mlp.up_proj": 1, "mlp.down_proj": 2}


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


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}
FALCON = SMALL | {"ffn_hidden_size": 96}
# Class, configuration, a fused projection, its query and key heads, whether heads interleave.
FUSED = {
    "bloom": (hf.BloomModel, hf.BloomConfig(hidden_size=48, n_layer=2, n_head=4), (4, 4, True)),
    "gpt_neox": (hf.GPTNeoXModel, hf.GPTNeoXConfig(**SMALL, intermediate_size=96), (4, 4, True)),
    "falcon, one key head": (hf.FalconModel, hf.FalconConfig(**FALCON), (4, 1, True)),
    "falcon, all key heads": (
        hf.FalconModel,
        hf.FalconConfig(**FALCON, multi_query=False),
        (4, 4, True),
    ),
    "falcon, grouped": (
        hf.FalconModel,
        hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
        (4, 2, True),
    ),
    "bigcode": (
        hf.GPTBigCodeModel,
        hf.GPTBigCodeConfig(n_embd=48, n_layer=2, n_head=4, multi_query=False),
        (4, 4, True),
    ),
    "bigcode, one key head": (
        hf.GPTBigCodeModel,
        hf.GPTBigCodeConfig(n_embd=48, n_layer=2, n_head=4),
        (4, 1, True),
    ),
    "mpt": (hf.MptModel, hf.MptConfig(d_model=48, n_layers=2, n_heads=4), (4, 4, False)),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections_are_laid_out_as_the_architecture_has_them(name):
    kind, config, expected = FUSED[name]
    with torch.device("meta"):
        sites = find_sites(kind(config))
    found = [site for site in sites.values() if site.role == "qkv"]
    assert len(found) == 2
    assert {(site.heads, site.kv_heads, site.interleaved) for site in found} == {expected}


NO_ROLE = {
    "codegen": (hf.CodeGenModel, hf.CodeGenConfig(n_embd=48, n_layer=2, n_head=4, rotary_dim=4)),
    "mamba": (hf.MambaModel, hf.MambaConfig(hidden_size=48, num_hidden_layers=2)),
    "lfm2": (
        hf.Lfm2Model,
        hf.Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=["conv", "conv"]),
    ),
}


@pytest.mark.parametrize("name", NO_ROLE)
def test_projections_that_are_not_queries_keys_and_values_have_no_role(name):
    kind, config = NO_ROLE[name]
    with torch.device("meta"):
        sites = find_sites(kind(config))
    assert not any(site.role == "qkv" for site in sites.values())


def test_towers_with_heads_of_their_own():
    text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = text | {"num_attention_heads": 6, "image_size": 16, "patch_size": 8}
    with torch.device("meta"):
        clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision))
        bart = hf.BartModel(
            hf.BartConfig(d_model=48, encoder_attention_heads=4, decoder_attention_heads=8)
        )
    for model, key, heads in (
        (clip, "text_model", 4),
        (clip, "vision_model", 6),
        (bart, "encoder.", 4),
        (bart, "decoder.", 8),
    ):
        found = [s for s in find_sites(model).values() if key in s.name and s.role in ("q", "k")]
        assert found
        assert {(site.heads, site.kv_heads) for site in found} == {(heads, heads)}


def test_layers_adapted_in_plain_torch_are_sites_still():
    from tnlib_adapters import LoTRConfig, NetworkLinear

    model = MAKERS["llama"]()
    before = find_sites(model)
    name = "model.layers.0.self_attn.q_proj"
    layer = NetworkLinear.from_linear(model.get_submodule(name), LoTRConfig())
    model.set_submodule(name, layer)
    assert find_sites(model) == before


@pytest.mark.skipif(not hasattr(hf, "Gemma4TextConfig"), reason="transformers has no Gemma 4")
def test_layers_with_configurations_of_their_own_have_heads_of_their_own():
    config = hf.Gemma4TextConfig(
        vocab_size=32,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=12,
        global_head_dim=24,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=32,
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
    )
    with torch.device("meta"):
        found = find_sites(hf.Gemma4ForCausalLM(config)).values()
    heads = {(site.layer, site.heads, site.kv_heads) for site in found if site.role}
    assert heads == {(0, 4, 2), (1, 4, 1)}
