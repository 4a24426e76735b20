"""A user's own method, from a declaration to PEFT."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from own_methods import FacTConfig, MetaTTConfig, PlainLoRAConfig

from tests.tnlib_adapters.models import assert_same_outputs, logits, make, train
from tests.tolerances import assert_close
from tnlib_adapters import NetworkLinear, SharedCores, count, find_sites

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
METHODS = {
    "lora": lambda: PlainLoRAConfig(r=4, target_modules=TARGETS),
    "fact": lambda: FacTConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "metatt": lambda: MetaTTConfig(r=4, target_modules=TARGETS),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_peft_takes_it_as_its_own(method, tmp_path):
    model = make("llama")
    before = logits(model)
    model = peft.get_peft_model(model, method())
    assert torch.equal(logits(model), before)
    assert count(make("llama"), method()).total == model.get_nb_trainable_parameters()[0]
    losses = train(model, steps=6)
    assert losses[-1] < losses[0]
    trained = logits(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert torch.equal(logits(loaded), trained)
    assert_same_outputs(logits(loaded.merge_and_unload()), trained)
    assert "import own_methods" in (tmp_path / "README.md").read_text()


@every_method
def test_plain_torch_shares_the_cores_too(method):
    model = make("llama")
    before, config, shared = logits(model), method(), SharedCores()
    adapted = []
    for name, site in find_sites(model).items():
        if name.rsplit(".", 1)[-1] in config.target_modules:
            layer = model.get_submodule(name)
            new = NetworkLinear.from_linear(layer, config, site=site, shared=shared)
            model.set_submodule(name, new)
            adapted.append(name)
    assert torch.equal(logits(model), before)
    cores = [p for n, p in model.named_parameters() if "update" in n or "shared" in n]
    assert sum(p.numel() for p in cores) == count(make("llama"), method()).total
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is core for core in cores))
    losses = train(model, steps=6)
    assert losses[-1] < losses[0]
    for name in adapted:
        layer = model.get_submodule(name)
        assert_close(layer.as_tnlib().to_dense(), layer.delta_weight(), operations=2 * 4 * 4)


def test_lora_is_pefts_lora():
    model = peft.get_peft_model(make("llama"), PlainLoRAConfig(r=4, target_modules=TARGETS))
    train(model)
    theirs = peft.get_peft_model(
        make("llama"), peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)
    )
    ours = {n: p for n, p in model.named_parameters() if "plain_lora_update" in n}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                core = "a" if "lora_A" in name else "b"
                stem = name.split(".lora_")[0]
                parameter.copy_(ours[f"{stem}.plain_lora_update.default.{core}"])
    assert_same_outputs(logits(model), logits(theirs))


def test_published_counts():
    with torch.device("meta"):
        vit = transformers.ViTForImageClassification(transformers.ViTConfig())
    blocks = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    # FacT-TT on ViT-B: 2 d r + 12 L r^2.
    assert count(vit, FacTConfig(r=16, target_modules=blocks)).adapter == 61_440
    # MetaTT-4D on q and v: 2 d r + (L + M) r^2, the four roles of attention being its matrices.
    metatt = count(vit, MetaTTConfig(r=8, target_modules=["q_proj", "v_proj"]))
    assert metatt.adapter == 2 * 768 * 8 + (12 + 4) * 64
