"""Gradients of weights that are not trained are those that training them would have."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.models import TARGETS, TERMS, logits, make, tokens, train
from tests.tolerances import assert_close
from tnlib_adapters import LoTRConfig, find_sites, weight_gradients
from tnlib_adapters.quantization import quantize_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def batches(name="llama", count=2):
    rows = tokens(rows=2 * count).chunk(count)
    labels = [row if name == "llama" or name == "gpt2" else row[:, 0] % 2 for row in rows]
    return [{"input_ids": row, "labels": y} for row, y in zip(rows, labels, strict=True)]


def expected(model, names, data):
    """By training the weights."""
    model.requires_grad_(True)
    for batch in data:
        model(**batch).loss.backward()
    return {name: model.get_submodule(name).weight.grad for name in names}


def targets(name, model):
    return [n for n in find_sites(model) if n.split(".")[-1] in TARGETS[name]]


@pytest.mark.parametrize("at_once", [None, 1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_they_are_those_of_training(name, at_once):
    model = make(name, torch.float64).eval()
    names, data = targets(name, model), batches(name)
    found = weight_gradients(model.requires_grad_(False), data, names, at_once=at_once, kept=10**6)
    for name_, gradient in expected(model, names, data).items():
        gradient = gradient.mT if name == "gpt2" else gradient
        # The products are formed in float32.
        assert_close(found[name_].leading.dense(), gradient, TERMS, dtype=torch.float32)
        energy = float(gradient.square().sum())
        assert found[name_].energy == pytest.approx(energy, rel=1e-4)


def test_what_is_kept_is_the_best_of_its_rank():
    model = make("llama").eval()
    (name, *_), data = targets("llama", model), batches()
    (whole,), (kept,) = (
        weight_gradients(model, data, [name], kept=rank).values() for rank in (10**6, 3)
    )
    values = torch.linalg.svdvals(whole.leading.dense())
    left = float((whole.leading.dense() - kept.leading.dense()).square().sum())
    assert kept.leading.left.shape[1] == 3
    assert left == pytest.approx(float(values[3:].square().sum()), rel=1e-4)
    assert kept.energy == pytest.approx(whole.energy)


def test_weights_in_4_bits_have_gradients_too():
    model, data = quantize_base(make("llama")).eval(), batches()
    names = [n for n in targets("llama", model) if n.endswith("q_proj")]
    found = weight_gradients(model, data, names)
    from tnlib_adapters.quantization import dequantize_base

    plain = dequantize_base(model, torch.float32).eval()
    for name, gradient in expected(plain, names, data).items():
        assert_close(found[name].leading.dense(), gradient, TERMS, dtype=torch.float32)


def test_the_model_is_left_as_it_is():
    model = peft.get_peft_model(make("llama"), LoTRConfig(r=2, target_modules=["q_proj"]))
    train(model)
    base, before = model.get_base_model().train(), logits(model)
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    trained = [value.requires_grad for value in model.parameters()]
    names = [n for n, m in base.named_modules() if hasattr(m, "get_delta_weight")]
    model.zero_grad()
    weight_gradients(base, batches(), names)
    assert [module.training for module in model.modules()] == modes
    assert [value.requires_grad for value in model.parameters()] == trained
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(logits(model), before)


def test_bad_input_is_named():
    model, data = make("llama"), batches()
    name = targets("llama", model)[0]
    with pytest.raises(ValueError, match="batches is empty"):
        weight_gradients(model, [], [name])
    with pytest.raises(ValueError, match="returned no loss; put labels"):
        weight_gradients(model, [{"input_ids": data[0]["input_ids"]}], [name])
    with pytest.raises(TypeError, match=r"model.norm: the gradient by a LlamaRMSNorm"):
        weight_gradients(model, data, ["model.norm"])
    with pytest.raises(ValueError, match="does not depend"):
        weight_gradients(model, data, [name], loss=lambda m, b: torch.zeros(()))
    with pytest.raises(ValueError, match="is not finite"):
        weight_gradients(model, data, [name], loss=lambda m, b: m(**b).loss * float("inf"))
    with pytest.raises(AttributeError):
        weight_gradients(model, data, ["model.nothing"])


def test_a_layer_that_no_batch_calls_is_named():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    with pytest.raises(ValueError, match="no gradient reached 1: no batch calls it"):
        weight_gradients(model, [torch.ones(2, 4)], ["0", "1"], loss=lambda m, x: m[0](x).sum())
