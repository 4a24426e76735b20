"""What PEFT and transformers promise of saved adapters, for every method."""

from __future__ import annotations

import contextlib
import json

import peft
import pytest
import safetensors.torch
import torch
import transformers as hf

from tests.tnlib_adapters.adapters import (
    adapted,
    alone,
    every_method,
    method_of_each_structure,
    saved_base,
    two_adapters,
)
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_model,
    assert_same_outputs,
    cores_in,
    logits,
    make,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@every_method
def test_loading_on_the_meta_device(method, tmp_path):
    model, before = adapted(method, "llama")
    train(model)
    model.save_pretrained(tmp_path)
    base = make("llama")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=True)
    assert_same_model(loaded, model)
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), before)
    further = peft.PeftModel.from_pretrained(make("llama"), tmp_path, is_trainable=True)
    expected = train(model)
    assert train(further) == expected


CLASSIFIER = ("bert", "SEQ_CLS", peft.AutoPeftModelForSequenceClassification)
LANGUAGE_MODEL = ("llama", "CAUSAL_LM", peft.AutoPeftModelForCausalLM)


@pytest.mark.parametrize(
    ("method", "name", "task", "kind"),
    [
        (method, *(CLASSIFIER if method in ("dota", "lorta", "rep") else LANGUAGE_MODEL))
        for method in METHODS
    ],
)
def test_an_auto_class_finds_the_base_by_the_adapter(method, name, task, kind, tmp_path):
    base = saved_base(name, tmp_path / "base")
    config = METHODS[method](target_modules=TARGETS[name], task_type=task)
    model = peft.get_peft_model(base, config)
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = kind.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is type(model)
    assert_same_model(loaded, model)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")


@method_of_each_structure
def test_transformers_adds_trains_and_saves_an_adapter(method, tmp_path):
    model = make("llama")
    before = logits(model)
    # Copies of modules stay disabled in transformers' enable_adapters, so train no norms.
    config = METHODS[method](target_modules=TARGETS["llama"], **alone(method))
    model.add_adapter(config, adapter_name="mine")
    assert model.active_adapters() == ["mine"]
    assert torch.equal(logits(model), before)
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = logits(model)
    model.disable_adapters()
    assert torch.equal(logits(model), before)
    model.enable_adapters()
    assert torch.equal(logits(model), trained)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert_same_outputs(logits(loaded), trained)
    model.delete_adapter("mine")
    assert not any("mine" in key for key in model.state_dict())


@method_of_each_structure
def test_transformers_loads_an_adapter(method, tmp_path):
    base = saved_base("llama", tmp_path / "base")
    before = logits(base)
    model = peft.get_peft_model(base, METHODS[method](target_modules=TARGETS["llama"]))
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = make("llama")
    plain.load_adapter(str(tmp_path / "adapter"), adapter_name="loaded")
    assert_same_outputs(logits(plain), trained)
    plain.disable_adapters()
    assert_same_outputs(logits(plain), before)
    direct = hf.AutoModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert_same_outputs(logits(direct), trained)


@method_of_each_structure
def test_two_adapters_are_saved_and_loaded_by_name(method, tmp_path):
    model, outputs, _ = two_adapters(method)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    loaded.load_adapter(tmp_path / "second", adapter_name="second")
    # One file more under another name, of the same adapter.
    loaded.load_adapter(tmp_path / "second", adapter_name="third")
    outputs["third"] = outputs["second"]
    for name in ("second", "default", "third"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), outputs[name])


@pytest.mark.parametrize(
    ("method", "adapter"),
    [("dota", "core_0"), ("lotr", "u"), ("lorta", "a"), ("rep", "up_0"), ("adp", "up_bias")]
    + [(method, "layer") for method in METHODS],
)
def test_an_adapter_may_be_named_like_a_part_of_the_model(method, adapter, tmp_path):
    base = make("bert")
    config = METHODS[method](target_modules=["query", "pooler.dense"], **alone(method))
    in_prefix = adapter in f"{config.method}_"
    warned = pytest.warns(UserWarning, match="should not be contained in the prefix")
    with warned if in_prefix else contextlib.nullcontext():
        model = peft.get_peft_model(base, config, adapter_name=adapter)
    train(model)
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / adapter / "adapter_model.safetensors")
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path / adapter, adapter_name="one")
    assert torch.equal(logits(loaded), logits(model))
    assert saved.keys() == peft.get_peft_model_state_dict(loaded, adapter_name="one").keys()


@every_method
def test_the_state_of_an_adapter_is_read_and_set(method):
    model, _ = adapted(method, "bert")
    train(model)
    state = peft.get_peft_model_state_dict(model)
    assert not any("default" in key for key in state)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    named = {n.replace(".default", "").replace(".modules_to_save", "") for n in trained}
    assert named <= set(state)
    assert all("anchor_" in key for key in set(cores_in(state)) - named)
    assert set(model.state_dict()) > trained
    twin, _ = adapted(method, "bert")
    result = peft.set_peft_model_state_dict(twin, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(twin), logits(model))


@every_method
def test_modules_to_save_travel_with_the_cores(method, tmp_path):
    model, before = adapted(method, "bert", modules_to_save=["classifier"], task_type="SEQ_CLS")
    train(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    prefix = model.base_model.prefix
    others = {key for key in saved if prefix not in key and "LayerNorm" not in key}
    assert others == {f"base_model.model.classifier.{leaf}" for leaf in ("weight", "bias")}
    assert any(prefix in key for key in saved)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize(
    ("method", "which"),
    [(method, "only") for method in sorted(METHODS)] + [("lotr", "all"), ("rep", "all")],
)
def test_biases_train_and_are_saved(method, which, tmp_path):
    bias = "all" if which == "all" else f"{METHODS[method]().method}_only"
    model, _ = adapted(method, "bert", bias=bias, modules_to_save=["classifier"])
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    biases = {n for n in moved if n.endswith(".bias") and "modules_to_save" not in n}
    targets = {n for n in start if n.endswith("base_layer.bias")}
    everywhere = {
        n
        for n in start
        if n.endswith(".bias") and "modules_to_save" not in n and "original_module" not in n
    }
    # A constant added to all keys changes no attention, so its gradient is nothing but rounding.
    idle = {n for n in start if ".key." in n}
    assert targets
    assert biases - idle == (everywhere if which == "all" else targets) - idle
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@method_of_each_structure
def test_the_saved_configuration_and_card(method, tmp_path):
    model, _ = adapted(method, "bert", progressbar=False)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    config = model.peft_config["default"]
    assert saved["peft_type"] == f"{config.method.upper()} (import tnlib_adapters first)"
    assert saved["init_weights"] == "saved"
    assert config.init_weights is True
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    changed = ("init_weights", "inference_mode", "auto_mapping")
    fields, expected = loaded.to_dict(), config.to_dict()
    assert {k: _plain(v) for k, v in fields.items() if k not in changed} == {
        k: _plain(v) for k, v in expected.items() if k not in changed
    }
    for _ in range(2):
        card = (tmp_path / "README.md").read_text()
        assert card.count("run `import tnlib_adapters` before") == 1
        model.save_pretrained(tmp_path)


def _plain(value):
    return sorted(value) if isinstance(value, set | list) else value


@method_of_each_structure
def test_training_from_a_saved_configuration_without_its_cores_is_refused(method, tmp_path):
    METHODS[method](target_modules=TARGETS["bert"]).save_pretrained(tmp_path)
    saved = peft.PeftConfig.from_pretrained(tmp_path)
    saved.inference_mode = False
    model = peft.get_peft_model(make("bert"), saved)
    with pytest.raises(RuntimeError, match="set init_weights=True"):
        train(model)


@method_of_each_structure
def test_tied_embeddings_stay_tied(method, tmp_path):
    model, before = adapted(method, "qwen2")
    train(model)
    trained = logits(model)
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert not any("lm_head" in key or "embed_tokens" in key for key in saved)
    loaded = peft.PeftModel.from_pretrained(make("qwen2"), tmp_path)
    assert_same_outputs(logits(loaded), trained)
    done = model.merge_and_unload() if method in MERGEABLE else model.unload()
    assert done.lm_head.weight is done.model.embed_tokens.weight
    outputs = logits(done)
    done.save_pretrained(tmp_path / "whole")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_same_outputs(logits(again), outputs)
    if method in MERGEABLE:
        assert_same_outputs(outputs, trained)
    else:
        assert torch.equal(outputs, before)
