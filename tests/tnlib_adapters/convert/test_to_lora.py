"""Exact factors of a network, and adapters as LoRA folders."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

from tests.tnlib_adapters.adapters import moved
from tests.tnlib_adapters.forms import EXACT, METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    TERMS,
    assert_same_outputs,
    logits,
    make,
    tokens,
)
from tests.tolerances import assert_close, rounding
from tnlib_adapters import LoTRConfig
from tnlib_adapters.convert.write_lora import to_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
# Norms and errors of factors that are rounded to float32, a product of at most 48 terms.
ROUNDED = rounding(torch.float32, 48)
MODELS = ["bert", "llama", "gpt2"]


def trained(method, name, **kwargs):
    """An adapted model whose trainable parameters are anywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = METHODS[method](**({"target_modules": TARGETS[name]} | kwargs))
        model = peft.get_peft_model(make(name), config)
        moved(model)
    return model.eval()


def as_lora(name, folder):
    return peft.PeftModel.from_pretrained(make(name), folder)


def deltas(model):
    """Dense updates of a PEFT model by module."""
    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in EXACT for name in MODELS]
    + [("lorta", "deberta"), ("lorta", "phi3"), ("rep", "vit")],
)
def test_peft_alone_gives_the_same_outputs(method, name, tmp_path):
    model = trained(method, name)
    result = to_lora(model, tmp_path / "lora")
    loaded = as_lora(name, tmp_path / "lora")
    assert_same_outputs(logits(loaded), logits(model))
    assert isinstance(loaded.peft_config["default"], peft.LoraConfig)
    # Exact up to the float32 rounding of two factors, measured against both norms.
    assert result.error < 1e-5
    old, new = deltas(model), deltas(loaded)
    assert old.keys() == new.keys()
    factors = dict(loaded.named_parameters())
    for key, delta in old.items():
        left, right = (factors[f"{key}.lora_{side}.default.weight"].detach() for side in "BA")
        size = float(left.norm() * right.norm())
        # Both factors are rounded, and then multiplied, by either side.
        assert float((new[key] - delta).norm()) < rounding(torch.float32, len(right) + 2, size)
    layers = {module for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert all(layer.scaling["default"] == 1 for layer in layers)
    assert result.n_bytes == (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert result.n_params == sum(p.numel() for n, p in loaded.named_parameters() if "lora_" in n)


_PLAIN = """
import sys, peft, safetensors.torch, torch, transformers
for folder in sys.argv[1:]:
    kind = {"bert": transformers.AutoModelForSequenceClassification}
    config = transformers.AutoConfig.from_pretrained(f"{folder}/base")
    kind = kind.get(config.model_type, transformers.AutoModelForCausalLM)
    base = kind.from_pretrained(f"{folder}/base")
    model = peft.PeftModel.from_pretrained(base, f"{folder}/lora").eval()
    expected = safetensors.torch.load_file(f"{folder}/expected.safetensors")
    with torch.no_grad():
        found = model(input_ids=expected["input_ids"]).logits
    assert (found - expected["logits"]).abs().max() <= expected["rounding"]
assert not any(name.startswith("tnlib") for name in sys.modules)
print("done", len(sys.argv) - 1)
"""


def test_a_process_without_our_code_loads_the_folder(tmp_path):
    folders = []
    for method, name in zip(EXACT, itertools.cycle(MODELS), strict=False):
        folder = tmp_path / f"{method}-{name}"
        model = trained(method, name)
        make(name).save_pretrained(folder / "base")
        to_lora(model, folder / "lora")
        outputs = {"input_ids": tokens(), "logits": logits(model)}
        allowed = rounding(torch.float32, TERMS, outputs["logits"].abs().max())
        outputs["rounding"] = torch.tensor(allowed)
        save_file(outputs, folder / "expected.safetensors")
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN, *folders], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", str(len(EXACT))]


@pytest.mark.parametrize("method", ["lorta", "rep", "dota"])
def test_a_folder_gives_what_the_model_gives_without_any_weights(method, tmp_path):
    base = tmp_path / "base"
    make("llama").save_pretrained(base)
    (base / "model.safetensors").unlink()
    model = trained(method, "llama", task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    eps = 0.1 if method == "dota" else None
    expected = to_lora(model, tmp_path / "lora", eps=eps)
    for number, where in enumerate([None, base, make("llama").config, make("llama")]):
        output = tmp_path / f"lora{number}"
        found = to_lora(tmp_path / "adapter", output, base=where, eps=eps)
        for one, other in zip(found.weights, expected.weights, strict=True):
            assert one == replace(other, error=one.error, norm=one.norm)
            allowed = {"rel": ROUNDED, "abs": ROUNDED}
            assert (one.error, one.norm) == pytest.approx((other.error, other.norm), **allowed)
        assert replace(found, weights=expected.weights) == expected
        configs = [(tmp_path / f / "adapter_config.json").read_text() for f in (output, "lora")]
        assert configs[0] == configs[1]
        old, new = (deltas(as_lora("llama", tmp_path / f)) for f in ("lora", output))
        for name, change in old.items():
            assert_close(new[name], change, operations=48, dtype=torch.float32)


@pytest.mark.parametrize(
    ("method", "name", "target"),
    [
        ("dota", "llama", {"eps": 0.2}),
        ("dota", "gpt2", {"rank": 3}),
        ("rep", "gpt2", {"eps": 0.2}),
        ("lotr", "llama", {"rank": 3, "eps": 0.9}),
    ],
)
def test_errors_are_those_of_the_factors_as_written(method, target, name, tmp_path):
    model = trained(method, name)
    result = to_lora(model, tmp_path / "lora", **target)
    old, new = deltas(model), deltas(as_lora(name, tmp_path / "lora"))
    total = off = 0.0
    for weight in result.weights:
        key = f"base_model.model.{weight.name}"
        norm, error = float(old[key].norm()), float((old[key] - new[key]).norm())
        assert weight.norm == pytest.approx(norm, rel=1e-5)
        # PEFT forms the product in float32.
        assert weight.error == pytest.approx(error / norm, rel=1e-4, abs=1e-6)
        (rank,) = weight.ranks
        assert rank <= target.get("rank", rank)
        values = torch.linalg.svdvals(old[key])
        best = values.square().flip(0).cumsum(0).flip(0).sqrt() / norm
        assert weight.error <= float(best[rank]) + 1e-6
        if "rank" not in target:
            # No smaller rank meets the tolerance.
            assert weight.error <= target["eps"] < float(best[rank - 1]) + 1e-6
        total, off = total + norm**2, off + error**2
    assert result.error == pytest.approx(math.sqrt(off / total), rel=1e-4, abs=1e-6)
    assert "relative error" in str(result)


def test_an_operator_needs_a_rank_or_a_tolerance(tmp_path):
    model = trained("dota", "llama")
    with pytest.raises(ValueError, match=r"q_proj: .*no exact factors.*rank= or eps="):
        to_lora(model, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_an_update_of_zero_is_written_as_zeros_of_rank_one(tmp_path):
    model = peft.get_peft_model(make("llama"), LoTRConfig(target_modules=["q_proj"]))
    result = to_lora(model, tmp_path / "lora")
    assert [(w.ranks, w.error, w.norm) for w in result.weights] == [((1,), 0.0, 0.0)] * 2
    assert torch.equal(logits(as_lora("llama", tmp_path / "lora")), logits(make("llama")))


@pytest.mark.parametrize(
    ("method", "bias"), [("lotr", "none"), ("lotr", "all"), ("rep", "all"), ("rep", "only")]
)
def test_what_is_trained_in_full_travels_with_the_factors(method, bias, tmp_path):
    bias = f"{METHODS[method]().method}_only" if bias == "only" else bias
    kwargs = {"modules_to_save": ["classifier"], "bias": bias, "task_type": "SEQ_CLS"}
    model = trained(method, "bert", **kwargs)
    model.save_pretrained(tmp_path / "adapter")
    for source, base in ((model, None), (tmp_path / "adapter", make("bert").config)):
        output = tmp_path / f"lora{base is None}"
        to_lora(source, output, base=base)
        loaded = as_lora("bert", output)
        assert_same_outputs(logits(loaded), logits(model))
        assert loaded.peft_config["default"].task_type == "SEQ_CLS"
        assert set(loaded.peft_config["default"].modules_to_save) >= {"classifier"}


class Nested(nn.Module):
    """Names that are the ends of other names, and a regular expression's characters in one."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.ModuleDict({"a": nn.Linear(6, 6), "x+": nn.Linear(6, 6)})

    def forward(self, x):
        return self.b["x+"](self.b["a"](self.a(x)))


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("a", {"a"}),
        (["b.a"], {"b.a"}),
        (["a"], {"a", "b.a"}),
        (r"b\..*", {"b.a", "b.x+"}),
        ("all-linear", {"a", "b.a", "b.x+"}),
    ],
)
def test_exactly_the_adapted_modules_are_matched(targets, names, tmp_path):
    config = LoTRConfig(r=2, target_modules=targets)
    model = peft.get_peft_model(Nested(), config)
    for p in model.parameters():
        p.data.normal_() if p.requires_grad else None
    # One weight of another rank, so that patterns are written as well.
    first = next(m for m in model.modules() if hasattr(m, "held") and hasattr(m, "base_layer"))
    first.update("default").g.data[0] = 0
    base = Nested()
    base.load_state_dict(_plain_state(model))
    result = to_lora(model, tmp_path / "lora", eps=1e-3)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    adapted = {n for n, m in loaded.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == names == {weight.name for weight in result.weights}
    assert {w.ranks for w in result.weights} == ({(1,), (2,)} if len(names) > 1 else {(1,)})
    x = torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-3)


def _plain_state(model):
    state = model.base_model.model.state_dict()
    return {
        name.replace(".base_layer.", "."): value
        for name, value in state.items()
        if ".lotr_" not in name
    }


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({"layers_to_transform": [1]}, {"layers.1.self_attn.v_proj"}),
        ({"exclude_modules": ["layers.1.self_attn.v_proj"]}, {"layers.0.self_attn.v_proj"}),
    ],
)
def test_layers_and_exclusions_are_kept(chosen, names, tmp_path):
    model = trained("lotr", "llama", target_modules=["v_proj"], **chosen)
    result = to_lora(model, tmp_path / "lora")
    assert {weight.name for weight in result.weights} == {f"model.{name}" for name in names}
    loaded = as_lora("llama", tmp_path / "lora")
    assert_same_outputs(logits(loaded), logits(model))


def test_an_adapter_is_chosen_by_name(tmp_path):
    model = trained("lotr", "llama")
    with torch.random.fork_rng():
        model.add_adapter("second", METHODS["lotr"](target_modules=["q_proj"], init_weights=False))
    to_lora(model, tmp_path / "second", adapter_name="second")
    to_lora(model, tmp_path / "default")
    assert_same_outputs(logits(as_lora("llama", tmp_path / "default")), logits(model))
    model.set_adapter("second")
    assert_same_outputs(logits(as_lora("llama", tmp_path / "second")), logits(model))
    with pytest.raises(ValueError, match=r"adapter_name=, one of \['default', 'second'\]"):
        to_lora(model, tmp_path / "x", adapter_name="third")


def test_adapters_that_change_no_weight_name_the_variant_that_does(tmp_path):
    model = trained("adp", "bert", target_modules=["query"])
    model.save_pretrained(tmp_path / "adapter")
    for source in (model, tmp_path / "adapter"):
        base = None if source is model else make("bert")
        with pytest.raises(TypeError, match=r"query: .*variant='rep' without tt_head"):
            to_lora(source, tmp_path / "lora", base=base, eps=0.1)
    assert not (tmp_path / "lora").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = trained("lotr", "llama")
    model.save_pretrained(folder / "lotr")
    peft.get_peft_model(make("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        folder / "lora"
    )
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("mine")
    return folder


@pytest.mark.parametrize(
    ("source", "kwargs", "error", "message"),
    [
        ("lotr", {}, ValueError, "does not say which base model.*base="),
        ("lotr", {"base": "/nowhere"}, FileNotFoundError, "nowhere.*give base="),
        ("lotr", {"base": "bert"}, ValueError, "does not fit the base.*trained on as base="),
        ("lotr", {"base": 3}, TypeError, "base must be a model, .*got int"),
        ("lotr", {"rank": 0}, ValueError, "rank must be at least 1"),
        ("lotr", {"rank": 1.5}, TypeError, "rank must be an int"),
        ("lotr", {"eps": 0}, ValueError, "eps must be at least 1e-06"),
        ("lotr", {"eps": "small"}, TypeError, "eps must be a number"),
        ("lotr", {"adapter_name": "x"}, ValueError, "adapter_name= is for a model"),
        ("lora", {"base": "llama"}, TypeError, "LORA, not a method of tnlib_adapters"),
        ("missing", {}, FileNotFoundError, "missing has no adapter_config.json"),
        (None, {}, TypeError, "expected a peft.PeftModel or the folder.*NoneType"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    source, kwargs, error, message, saved, tmp_path
):
    if kwargs.get("base") in ("bert", "llama"):
        kwargs = kwargs | {"base": make(kwargs["base"])}
    with pytest.raises(error, match=message):
        to_lora(source and saved / source, tmp_path / "lora", **kwargs)
    assert not list(tmp_path.iterdir())


def test_an_output_that_holds_something_is_left_alone(saved, tmp_path):
    base = make("llama")
    with pytest.raises(FileExistsError, match="is not empty"):
        to_lora(saved / "lotr", saved / "full", base=base)
    with pytest.raises(FileExistsError, match="is a file"):
        to_lora(saved / "lotr", saved / "full" / "file", base=base)
    assert (saved / "full" / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    to_lora(saved / "lotr", tmp_path / "empty", base=base)
    files = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "empty").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_nan_is_refused_by_the_name_of_the_weight(tmp_path):
    model = trained("lotr", "llama")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(".g")).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"q_proj: the adapter holds nan"):
        to_lora(model, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_layers_that_peft_takes_for_experts_are_refused(tmp_path):
    """It rewrites targets of some mixtures of experts while it loads a LoRA."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    sizes |= {"intermediate_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 4}
    sizes |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    sizes |= {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8}
    sizes |= {"qk_nope_head_dim": 8, "num_key_value_heads": 4}
    base = hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes))
    state = copy.deepcopy(base.state_dict())
    config = LoTRConfig(r=4, target_modules=["o_proj", "shared_experts.up_proj"])
    with pytest.raises(ValueError, match=r"PEFT would load a LoRA on .* parts of the fused exp"):
        to_lora(peft.get_peft_model(base, config), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    base = hf.DeepseekV3ForCausalLM(base.config)
    base.load_state_dict(state)
    model = peft.get_peft_model(base, LoTRConfig(r=4, target_modules=["o_proj"]))
    moved(model)
    to_lora(model, tmp_path / "lora")
    base = hf.DeepseekV3ForCausalLM(base.config)
    base.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    assert_same_outputs(logits(loaded), logits(model.eval()))


def test_the_configuration_names_the_base_and_its_class(tmp_path):
    model = trained("lotr", "llama")
    base = str(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = base
    make("llama").config.save_pretrained(base)
    to_lora(model, tmp_path / "lora")
    fields = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == base
    assert fields["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    assert fields["inference_mode"] is True
    assert fields["target_modules"] == sorted(TARGETS["llama"])
