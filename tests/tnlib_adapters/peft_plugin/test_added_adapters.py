"""Adapters that are added beside others: what they start from, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, logits, make, train
from tnlib_adapters import Core, Network, NetworkConfig, normal, zeros

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def config(method, **kwargs):
    return METHODS[method](**({"target_modules": TARGETS["llama"]} | alone(method) | kwargs))


def copied(model, source, target):
    """Copy trained parameters by name, and no buffers, as TRL makes the reference of a model."""
    values = dict(model.named_parameters())
    for name, value in values.items():
        if f".{source}." in name:
            values[name.replace(f".{source}.", f".{target}.")].data.copy_(value.data)


@every_method
def test_a_copy_of_a_loaded_adapter_is_the_same_function(method, tmp_path):
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path, is_trainable=True)
    before = logits(loaded)
    loaded.add_adapter("reference", loaded.peft_config["default"])
    copied(loaded, "default", "reference")
    loaded.set_adapter("reference")
    assert torch.equal(logits(loaded), before)
    loaded.set_adapter("default")
    assert torch.equal(logits(loaded), before)


@every_method
def test_an_adapter_added_by_a_saved_configuration_starts_as_the_base_model(method, tmp_path):
    model = peft.get_peft_model(make("llama"), config(method))
    base = logits(make("llama"))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path)
    loaded.add_adapter("new", loaded.peft_config["default"])
    loaded.set_adapter("new")
    assert_same_outputs(logits(loaded), base)
    losses = train(loaded)
    assert losses[-1] < losses[0]


def test_without_another_adapter_it_starts_from_the_weights(tmp_path):
    model = peft.get_peft_model(make("llama"), config("dota"))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path)
    saved = loaded.peft_config["default"]
    fresh = peft.get_peft_model(make("llama"), saved)
    assert_same_outputs(logits(fresh), logits(make("llama")))
    anchors = [value for name, value in fresh.state_dict().items() if "anchor_" in name]
    assert anchors
    assert all(anchor.any() for anchor in anchors)


@dataclass
class FrozenConfig(NetworkConfig, method="frozen_random"):
    """Trains a diagonal between two frozen random factors, one of them shared: as VeRA does."""

    def network(self, site):
        return Network(
            cores=(
                Core("a", ("rank", "in"), normal(0.1), group=f"{site.in_features}", frozen=True),
                Core("b", ("out", "rank"), normal(0.1), frozen=True),
                Core("d", ("rank",), zeros),
            ),
            sizes={"in": site.in_features, "out": site.out_features, "rank": 4},
            out_legs=("out",),
            in_legs=("in",),
        )


def test_frozen_random_cores_are_taken_over_too(tmp_path):
    model = peft.get_peft_model(make("llama"), FrozenConfig(target_modules=["q_proj", "k_proj"]))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path, is_trainable=True)
    before = logits(loaded)
    loaded.add_adapter("reference", loaded.peft_config["default"])
    copied(loaded, "default", "reference")
    loaded.set_adapter("reference")
    assert torch.equal(logits(loaded), before)


def test_cores_without_their_anchor_are_refused():
    model = peft.get_peft_model(make("llama"), config("dota"))
    update = next(m for m in model.modules() if type(m).__name__ == "Update")
    update._initialized = False
    anchors = [value for name, value in update.named_buffers() if name.startswith("anchor_")]
    assert len(anchors) == len(update.cores)
    for value in anchors:
        value.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"anchor_core_0.*never loaded"):
        logits(model)


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT for a second time:UserWarning",
    "ignore:Already found a `peft_config`:UserWarning",
)
@every_method
def test_a_second_adapter_under_one_name_is_refused(method):
    base = make("llama")
    model = peft.get_peft_model(base, config(method))
    train(model)
    before, saved = logits(model), model.peft_config["default"]
    other = METHODS[method](target_modules=["o_proj"])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has an adapter 'default' already.*second"):
            peft.get_peft_model(base, other)
    assert model.peft_config == {"default": saved}
    assert torch.equal(logits(model), before)
    peft.get_peft_model(base, other, adapter_name="second")
    assert set(model.peft_config) == {"default", "second"}


@pytest.mark.parametrize("method", MERGEABLE)
def test_peft_converts_to_a_lora(method):
    """Also where layers share cores, which are no layer to PEFT."""
    model = peft.get_peft_model(make("llama"), config(method, target_modules=["q_proj", "o_proj"]))
    train(model)
    lora, values = peft.convert_to_lora(model, rank=48)
    converted = peft.get_peft_model(make("llama"), lora)
    peft.set_peft_model_state_dict(converted, values)
    assert_same_outputs(logits(converted), logits(model))


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted:UserWarning")
@every_method
def test_peft_switches_freezes_and_deletes_shared_cores_with_their_layers(method):
    model = peft.get_peft_model(make("llama"), config(method))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("corestore" in name for name in trained) == (method in ("lotr", "lorta"))
    model.set_requires_grad("default", requires_grad=False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad("default")
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_adapter("second", config(method))
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    status = model.get_model_status()
    # Layers whose cores are all shared have no values of their own.
    assert (status.enabled, status.requires_grad.get("default", True)) == (True, True)
    assert status.available_adapters == ["default", "second"]
    model.delete_adapter("default")
    assert not any(".default" in name for name in model.state_dict())


@dataclass
class MovedConfig(NetworkConfig, method="moved"):
    """Starts away from the base model, by oversight."""

    def network(self, site):
        return Network(
            cores=(Core("a", ("rank", "in"), normal(0.1)), Core("b", ("out", "rank"), normal(0.1))),
            sizes={"in": site.in_features, "out": site.out_features, "rank": 2},
            out_legs=("out",),
            in_legs=("in",),
        )


@dataclass
class EmptyConfig(NetworkConfig, method="empty"):
    """Forgets to return its network."""

    def network(self, site):
        """Nothing."""


def test_own_methods_with_an_oversight_say_so():
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"moved does not start as the base model: .* of the"):
        peft.get_peft_model(layers, MovedConfig(target_modules=["0", "1"]))
    with pytest.raises(TypeError, match=r"0: EmptyConfig.network must return .*, got None"):
        peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), EmptyConfig(target_modules=["0"]))
