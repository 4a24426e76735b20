"""Adapted models, one or two adapters on each, and which methods a test goes through."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers as hf

from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TARGETS, logits, make, train
from tnlib_adapters.peft_plugin.layer import NetworkLayer

every_method = pytest.mark.parametrize("method", sorted(METHODS))


def by_structure(methods):
    """One method for each way to hold cores; the others, which hold theirs alike, if slow.

    DoTA's start is saved beside its cores, LoTR's cores are shared between layers as LoRTA's are,
    and the two variants of LoRETTA train norms too, in parallel to a layer or in series.
    """
    alike = {"lorta", "rep"} & set(methods)
    cases = [pytest.param(m, marks=pytest.mark.slow if m in alike else ()) for m in methods]
    return pytest.mark.parametrize("method", cases)


method_of_each_structure = by_structure(sorted(METHODS))


def adapted(method, name, dtype=torch.float32, **kwargs):
    """An adapted model with reproducible cores, and the base model's outputs."""
    model = make(name, dtype)
    before = logits(model)
    config = METHODS[method](target_modules=TARGETS[name], **kwargs)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(model, config), before


def alone(method):
    """What makes a method train its cores only: LoRETTA's norms stay frozen."""
    return {"train_norms": False} if method in ("rep", "adp") else {}


def second(method, **kwargs):
    """A configuration whose targets overlap those of :data:`TARGETS` for Llama in part."""
    return METHODS[method](**({"target_modules": ["q_proj", "up_proj"]} | alone(method) | kwargs))


def two_adapters(method, **kwargs):
    """A model with two trained adapters, the outputs of each, and those of the base model."""
    model, before = adapted(method, "llama", **alone(method))
    outputs = {}
    train(model)
    outputs["default"] = logits(model)
    model.add_adapter("second", second(method, **kwargs))
    model.set_adapter("second")
    assert torch.equal(logits(model), before)
    train(model, steps=2)
    outputs["second"] = logits(model)
    assert not torch.equal(outputs["second"], outputs["default"])
    return model, outputs, before


def parts(model):
    return [module for module in model.modules() if isinstance(module, NetworkLayer)]


def saved_base(name, folder):
    """A base model loaded from the folder that it was saved to, as adapters expect it."""
    make(name).save_pretrained(folder)
    kinds = {"bert": hf.AutoModelForSequenceClassification, "llama": hf.AutoModelForCausalLM}
    return kinds[name].from_pretrained(folder)


@torch.no_grad()
def moved(model, by=0.1):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=by)
