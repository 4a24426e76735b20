"""Names in files and in models that differ: mapped, compiled, or like a method's own."""

from __future__ import annotations

import json

import peft
import pytest
import safetensors
import torch
from peft import PeftModel
from torch import nn

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, logits, make, train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def config(method, targets=None, **kwargs):
    targets = targets or TARGETS["llama"]
    return METHODS[method](target_modules=targets, **alone(method), **kwargs)


def compiled(name, *layers):
    """A model of which some layers were compiled one by one, which puts a module between."""
    model = make(name)
    for k in layers:
        model.model.layers[k] = torch.compile(model.model.layers[k], backend="eager")
    return model


def keys(folder):
    with safetensors.safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return set(file.keys())


@every_method
def test_files_of_compiled_models_have_plain_names(method, tmp_path):
    plain = peft.get_peft_model(make("llama"), config(method))
    plain.save_pretrained(tmp_path / "plain")
    model = peft.get_peft_model(compiled("llama", 0), config(method))
    train(model)
    model.save_pretrained(tmp_path / "compiled")
    assert keys(tmp_path / "compiled") == keys(tmp_path / "plain")
    for base in (make("llama"), compiled("llama", 1), compiled("llama", 0, 1)):
        loaded = PeftModel.from_pretrained(base, tmp_path / "compiled")
        assert_same_outputs(logits(loaded), logits(model))


@every_method
def test_files_with_the_names_of_compiled_models_load(method, tmp_path):
    """As earlier versions wrote them."""
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    values = {
        name.replace("layers.0.", "layers.0._orig_mod."): value
        for name, value in safetensors.torch.load_file(path).items()
    }
    safetensors.torch.save_file(values, path)
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path)
    assert_same_outputs(logits(loaded), logits(model))


@pytest.mark.parametrize("method", ["rep", "adp"])
def test_norms_cannot_be_loaded_into_a_compiled_base(method, tmp_path):
    """PEFT looks for them under names that the file does not have."""
    whole = METHODS[method](target_modules=TARGETS["llama"])
    peft.get_peft_model(make("llama"), whole).save_pretrained(tmp_path)
    for base in (compiled("llama", 0), torch.compile(make("llama"), backend="eager")):
        before = {name: type(module) for name, module in base.named_modules()}
        with pytest.raises(ValueError, match="load the adapter first and compile the model then"):
            PeftModel.from_pretrained(base, tmp_path)
        assert before == {name: type(module) for name, module in base.named_modules()}


class Renamed(nn.Module):
    """Llama with its parts under other names."""

    def __init__(self):
        super().__init__()
        whole = make("llama")
        self.decoder, self.output, self.config = whole.model, whole.lm_head, whole.config

    def forward(self, input_ids):
        class Result:
            logits = self.output(self.decoder(input_ids).last_hidden_state)

        return Result


@every_method
def test_names_are_mapped_before_they_are_checked(method, tmp_path):
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    model.save_pretrained(tmp_path)
    mapping = {r"^model\.": "decoder."}
    loaded = PeftModel.from_pretrained(Renamed(), tmp_path, key_mapping=mapping)
    assert_same_outputs(logits(loaded), logits(model))


@pytest.mark.parametrize("method", ["dota", "lotr", "rep"])
def test_names_that_are_not_mapped_are_refused(method, tmp_path):
    model = peft.get_peft_model(make("llama"), config(method))
    model.save_pretrained(tmp_path)
    base = Renamed()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"the file has no tensor decoder.*are missing in all"):
        PeftModel.from_pretrained(base, tmp_path)
    assert names == [name for name, _ in base.named_modules()]
    assert not hasattr(base, "peft_config")


@every_method
def test_modules_named_as_a_methods_own(method, tmp_path):
    """A head whose name begins as the method's parts do is saved and loaded as any other."""
    head = f"{METHODS[method]().method}_head"

    def small():
        torch.manual_seed(0)
        layers = nn.Sequential()
        layers.add_module("inner", nn.Linear(8, 8))
        layers.add_module(head, nn.Linear(8, 4))
        return layers

    model = peft.get_peft_model(small(), config(method, ["inner"], modules_to_save=[head]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(), tmp_path)
    x = torch.randn(3, 8)
    assert_same_outputs(loaded(x), model(x))


@every_method
def test_a_saved_method_says_what_to_import(method, tmp_path):
    """PEFT raises a KeyError of the saved name where the method is not known."""
    wanted = config(method)
    wanted.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    name = wanted.method.upper()
    assert fields["peft_type"] == f"{name} (import tnlib_adapters first)"
    assert type(peft.PeftConfig.from_pretrained(tmp_path)) is type(wanted)
    path.write_text(json.dumps(fields | {"peft_type": name}))
    assert type(peft.PeftConfig.from_pretrained(tmp_path)) is type(wanted)


@pytest.mark.parametrize(
    ("method", "field", "word"),
    [
        ("lotr", "lora_alpha", "it is called alpha here"),
        ("rep", "lora_dropout", "it is called dropout here"),
        ("dota", "rank", "it is called r here"),
        ("lorta", "taget_modules", "it is called target_modules here"),
        ("lotr", "scale_factor", "it has none like it"),
    ],
)
def test_the_right_word_is_named_for_a_wrong_one(method, field, word):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{field}'; {word}"):
        METHODS[method](**{field: 4})


@pytest.mark.parametrize(
    ("method", "field", "advice"),
    [
        ("dota", "lora_alpha", "its update has no factor"),
        ("ttlora", "use_rslora", "its update has no factor alpha / r"),
        ("lotr", "use_dora", "use PEFT's LoRA for that"),
        ("lorta", "eva_config", "call start_from_gradients"),
    ],
)
def test_what_only_lora_has_is_answered_with_what_to_do(method, field, advice):
    with pytest.raises(TypeError, match=f"Config has no {field}: .*{advice}"):
        METHODS[method](**{field: 4})
