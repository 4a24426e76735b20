"""An adapter for every row of a batch: as if each row was alone with its adapter."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.adapters import adapted, every_method, moved
from tests.tnlib_adapters.expert_models import other_model, whole_model
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_outputs,
    inputs,
    make,
    tokens,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
NAMES = ["second", "__base__", "default"]


def two(method, arch, **kwargs):
    """A model with two adapters, each with values of its own."""
    model, _ = adapted(method, arch, **kwargs)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model)
        model.add_adapter("second", METHODS[method](target_modules=TARGETS[arch], **kwargs))
        model.set_adapter("second")
        moved(model)
    return model.eval()


def alone(model, name, call):
    """What a call gives with one adapter for all rows."""
    if name == "__base__":
        with model.disable_adapter():
            return call()
    model.set_adapter(name)
    return call()


@every_method
@pytest.mark.parametrize("arch", ["llama", "bert", "gpt2"])
def test_every_row_is_that_of_its_adapter(method, arch):
    """LoRETTA's norms and classifiers that are trained in full are those of the row too."""
    saved = {"modules_to_save": ["classifier"]} if arch == "bert" else {}
    model = two(method, arch, **saved)
    given = inputs(model)
    with torch.no_grad():
        whole = {name: alone(model, name, lambda: model(**given).logits) for name in NAMES}
        mixed = model(**given, adapter_names=NAMES).logits
        again = model(**given).logits
    for row, name in enumerate(NAMES):
        assert_same_outputs(mixed[row], whole[name][row])
        others = [whole[other][row] for other in NAMES if other != name]
        assert not any(torch.equal(mixed[row], other) for other in others)
    assert torch.equal(again, whole["default"])


@every_method
def test_rows_train_their_adapters_only(method):
    model = two(method, "llama")
    model.set_requires_grad(["default", "second"])
    ids = tokens(3)
    model.train()
    loss = model(ids, adapter_names=["default"] * 3).logits.square().mean()
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any(".default." in name and grad.any() for name, grad in grads.items())
    assert not any(".second." in name and grad.any() for name, grad in grads.items())


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}])
def test_generation(more):
    """Each row goes on as its adapter goes on, also where a search keeps several beams a row."""
    model = two("lotr", "llama")
    ids = tokens(3, 5)
    more = more | {"max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    more |= {"attention_mask": torch.ones_like(ids)}
    mixed = model.generate(input_ids=ids, adapter_names=NAMES, **more)
    for row, name in enumerate(NAMES):
        whole = alone(model, name, lambda: model.generate(input_ids=ids, **more))
        assert torch.equal(mixed[row], whole[row])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "adp"])
def test_tokens_of_experts_have_the_adapter_of_their_row(method):
    fields = {"target_modules": ["o_proj"], "target_parameters": "all-experts"}
    fields |= {"train_norms": False} if method == "rep" else {}
    model = peft.get_peft_model(whole_model("Qwen3Moe"), METHODS[method](**fields))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model, 0.05)
        model.add_adapter("second", METHODS[method](**fields))
        model.set_adapter("second")
        moved(model.eval(), 0.05)
    ids = torch.arange(21).reshape(3, 7)
    with torch.no_grad():
        whole = {name: alone(model, name, lambda: model(ids).logits) for name in NAMES}
        mixed = model(ids, adapter_names=NAMES).logits
    for row, name in enumerate(NAMES):
        assert_same_outputs(mixed[row], whole[name][row])


def test_bad_names_are_refused():
    model = two("lotr", "llama")
    ids = tokens(2)
    with pytest.raises(ValueError, match=r"adapter_names has \['nowhere'\], which are not there"):
        model(ids, adapter_names=["default", "nowhere"])
    with pytest.raises(ValueError, match="3 entries for a batch of 2 rows"):
        model(ids, adapter_names=NAMES)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged adapters; call unmerge_adapter\(\) first"):
        model(ids, adapter_names=["default", "second"])
    model.unmerge_adapter()
    model.get_base_model().activation_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match="do not go with activation checkpointing"):
        model(ids, adapter_names=["default", "second"])


def test_an_error_inside_leaves_no_names_behind():
    model = two("lotr", "llama")
    with torch.no_grad():
        before = model(tokens()).logits
        with pytest.raises(IndexError):
            model(tokens() + 1000, adapter_names=NAMES)
        assert torch.equal(model(tokens()).logits, before)


def test_a_layer_that_sees_other_rows_says_so():
    base = torch.nn.Sequential(torch.nn.Flatten(0, 1), torch.nn.Linear(8, 8))
    model = peft.get_peft_model(base, METHODS["lotr"](target_modules=["1"]))
    x = torch.randn(2, 3, 8)
    assert model(x, adapter_names=["default", "__base__"]).shape == (6, 8)
    model.base_model.model[0] = torch.nn.Unflatten(2, (1, 8))
    model.base_model.model[0].forward = lambda x: x.flatten(0, 1)[:5]
    with pytest.raises(ValueError, match="5 rows for a batch of 2"):
        model(x, adapter_names=["default", "__base__"])


def test_names_are_free_of_the_order_of_layers():
    """An adapter that a layer lacks leaves its rows as the base layer gives them."""
    model = peft.get_peft_model(make("llama"), METHODS["lotr"](target_modules=["q_proj"]))
    model.add_adapter("second", METHODS["lotr"](target_modules=["up_proj"]))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model)
        model.set_adapter("second")
        moved(model.eval())
    ids = tokens(3)
    with torch.no_grad():
        whole = {name: alone(model, name, lambda: model(ids).logits) for name in NAMES}
        mixed = model(ids, adapter_names=NAMES).logits
    for row, name in enumerate(NAMES):
        assert_same_outputs(mixed[row], whole[name][row])


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_trained_tokens_are_those_of_the_row(arch):
    model, _ = adapted("lotr", arch, trainable_token_indices=[3, 5, 27])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model)
        model.add_adapter("second", METHODS["lotr"](target_modules=TARGETS[arch]))
        model.set_adapter("second")
        moved(model.eval())
    given = inputs(model)
    with torch.no_grad():
        whole = {name: alone(model, name, lambda: model(**given).logits) for name in NAMES}
        mixed = model(**given, adapter_names=NAMES).logits
    for row, name in enumerate(NAMES):
        assert_same_outputs(mixed[row], whole[name][row])


@pytest.mark.parametrize("kind", ["Llama4Text", "JetMoe"])
def test_experts_that_see_tokens_as_they_are_sent_are_refused(kind):
    model = peft.get_peft_model(other_model(kind), METHODS["lotr"](target_parameters="all-experts"))
    with pytest.raises(ValueError, match="sees tokens as they are sent to experts"):
        model(torch.arange(6).reshape(2, 3), adapter_names=["default", "__base__"])


class Routed(torch.nn.Module):
    """Experts that are linear layers of their own."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3)))
        self.layers = getattr(self, name)

    def forward(self, inputs):
        flat = inputs.flatten(0, 1)
        return sum(layer(flat[k::3]).sum() for k, layer in enumerate(self.layers))


@pytest.mark.parametrize("name", ["experts", "blocks"])
def test_layers_of_single_experts_are_refused(name):
    """By their names, or since they see other rows than the tokens of the batch."""
    config = METHODS["lotr"](target_modules=rf"{name}\.\d")
    model = peft.get_peft_model(Routed(name), config)
    with pytest.raises(ValueError, match=r"layer of one expert|called with 4 rows"):
        model(torch.randn(2, 6, 4), adapter_names=["default", "__base__"])


def test_the_batch_is_that_of_the_inputs():
    """Whatever the order of the arguments is."""
    model = two("lotr", "llama")
    ids = tokens(3)
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        found = model(position_ids=places, input_ids=ids, adapter_names=NAMES).logits
        assert_same_outputs(found, model(ids, adapter_names=NAMES).logits)
