"""Adapters of experts exchanged with PEFT's LoRA of parameters, and merged into checkpoints."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tnlib_adapters.adapters import alone, moved
from tests.tnlib_adapters.expert_models import WHOLE, whole_model
from tests.tnlib_adapters.forms import EXACT, FITTED, MERGEABLE, METHODS
from tests.tnlib_adapters.models import assert_same_outputs
from tests.tolerances import rounding
from tnlib_adapters import from_lora, merge, to_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Could not find a config file"
)
IDS = torch.arange(3, 14)[None]
ALL = {"target_parameters": "all-experts"}
SOME = {
    "target_modules": ["o_proj"],
    "target_parameters": ["experts.up_proj", "experts.down_proj"],
    "experts": [1, 3],
}
kinds = pytest.mark.parametrize("kind", WHOLE)


def adapted(kind, method, **fields):
    model = peft.get_peft_model(whole_model(kind), METHODS[method](**(fields | alone(method))))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model.eval(), 0.05)
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@kinds
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("fields", [ALL, SOME], ids=["all", "some"])
def test_peft_computes_the_same_from_the_lora(kind, method, fields, tmp_path):
    model = adapted(kind, method, **fields)
    found = to_lora(model, tmp_path / "lora")
    assert found.error <= rounding(torch.float32)
    again = peft.PeftModel.from_pretrained(whole_model(kind), tmp_path / "lora")
    assert_same_outputs(logits(again), logits(model))
    model.save_pretrained(tmp_path / "adapter")
    other = to_lora(tmp_path / "adapter", tmp_path / "other", base=whole_model(kind))
    assert other.weights == found.weights
    files = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("lora", "other")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0] | files[1])


def test_experts_are_slowest_in_a_and_fastest_in_b(tmp_path):
    """PEFT's layout, in which other tools have mixed up experts and ranks."""
    model = adapted("Qwen3Moe", "lotr", target_parameters=["experts.down_proj"])
    to_lora(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    layer = model.base_model.model.model.layers[1].mlp.experts.down_proj
    name = "base_model.model.model.layers.1.mlp.experts.lora_{}.weight"
    a = tensors[name.format("A")].reshape(8, 4, 24)
    b = tensors[name.format("B")].reshape(32, 4, 8)
    for expert in range(8):
        delta = layer.update("default").delta(expert)
        off = torch.linalg.norm(b[:, :, expert] @ a[expert] - delta)
        assert off <= rounding(torch.float32, 100) * torch.linalg.norm(delta)


def test_an_operator_is_truncated_expert_by_expert(tmp_path):
    model = adapted("Qwen3Moe", "dota", **ALL)
    with pytest.raises(ValueError, match=r"experts.*give rank= or eps="):
        to_lora(model, tmp_path / "none")
    found = to_lora(model, tmp_path / "lora", eps=0.2)
    assert 0 < found.error <= 0.2
    again = peft.PeftModel.from_pretrained(whole_model("Qwen3Moe"), tmp_path / "lora")
    assert not torch.equal(logits(again), logits(whole_model("Qwen3Moe")))


@pytest.mark.parametrize("kind", ["Qwen3Moe", "GptOss"])
@pytest.mark.parametrize("method", FITTED)
def test_a_lora_of_experts_becomes_any_method(kind, method, tmp_path):
    """As large as the LoRA's updates of all weights together, all but CP hold it exactly."""
    fields = {"target_modules": ["o_proj"]}
    fields |= {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    lora = peft.LoraConfig(r=2, lora_alpha=5, **fields)
    model = peft.get_peft_model(whole_model(kind), lora)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model, 0.05)
    model.save_pretrained(tmp_path / "lora")
    size = {"tt_rank": 32, "bottleneck": 32} if method == "rep" else {"r": 32}
    config = METHODS[method](**(size | alone(method)))
    found = from_lora(tmp_path / "lora", tmp_path / "own", config, base=whole_model(kind))
    again = peft.PeftModel.from_pretrained(whole_model(kind), tmp_path / "own")
    if method != "lorta":
        assert found.error <= rounding(torch.float32, 4)
        return assert_same_outputs(logits(again), logits(model))
    assert 0 < found.error < 0.6
    base = logits(whole_model(kind))
    off = [torch.linalg.norm(logits(m) - base) for m in (again, model)]
    assert 0 < off[0] < 2 * off[1]


def test_a_lora_that_does_not_fit_is_refused(tmp_path):
    lora = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    peft.get_peft_model(whole_model("Qwen3Moe"), lora).save_pretrained(tmp_path)
    config = METHODS["lotr"]()
    with pytest.raises(ValueError, match="does not fit the model"):
        from_lora(tmp_path, tmp_path / "new", config, base=whole_model("DeepseekV3"))
    with pytest.raises(ValueError, match=r"of 8 experts of 32 x 24, the model has 8 of 24 x 32"):
        from_lora(tmp_path, tmp_path / "new", config, base=_other_widths())
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="not those of experts of rank 2"):
        from_lora(tmp_path, tmp_path / "new", config, base=whole_model("Qwen3Moe"))
    assert not (tmp_path / "new").exists()


def _other_widths():
    model = whole_model("Qwen3Moe")
    for layer in model.model.layers:
        shape = layer.mlp.experts.down_proj.mT.shape
        layer.mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(shape))
    return model


@kinds
@pytest.mark.parametrize("method", MERGEABLE)
@pytest.mark.parametrize("fused", [False, True], ids=["one by one", "fused"])
def test_checkpoints_of_both_layouts_are_merged(kind, method, fused, tmp_path):
    base = whole_model(kind)
    base.save_pretrained(tmp_path / "base", save_original_format=not fused)
    model = adapted(kind, method, **(ALL if fused else SOME))
    model.save_pretrained(tmp_path / "adapter")
    report = merge(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base")
    merged = type(base).from_pretrained(tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(model))
    files = [load_file(tmp_path / n / "model.safetensors") for n in ("base", "merged")]
    assert files[0].keys() == files[1].keys()
    one_by_one = any(".experts.0." in name for name in files[0])
    assert one_by_one == (not fused and kind != "GptOss")
    if not fused:  # experts that are not adapted are copied as they are
        still = [n for n in files[0] if ".experts.0." in n or ".experts.2." in n]
        assert all(torch.equal(files[0][name], files[1][name]) for name in still)
    assert report.worst <= rounding(torch.float32, 100)


def test_rounding_is_reported(tmp_path):
    whole_model("Qwen3Moe").bfloat16().save_pretrained(tmp_path / "base")
    adapted("Qwen3Moe", "lotr", **ALL).save_pretrained(tmp_path / "adapter")
    report = merge(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base")
    assert len(report.rounding) == 4
    assert 0 < report.median < 1


def test_a_checkpoint_of_another_layout_is_refused(tmp_path):
    whole_model("Qwen3Moe").save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {k.replace("gate_proj", "odd"): v for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    adapted("Qwen3Moe", "lotr", **ALL).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no tensor for"):
        merge(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base")
    assert not (tmp_path / "merged").exists()
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_parameters"] == "all-experts"
