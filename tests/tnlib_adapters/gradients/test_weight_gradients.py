"""Gradients of weights that are not trained are those that training them would have."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.expert_models import mixture
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


def test_gradients_that_experts_had_are_neither_counted_nor_lost():
    def loss(model, batch):
        return model(batch["rows"]).square().mean()

    data = [{"rows": torch.arange(10).reshape(2, 5)}]
    names = ["mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj"]
    model = mixture("Qwen3MoeExperts", "eager")
    expected = weight_gradients(model, data, names, loss=loss)
    loss(model, data[0]).backward()
    earlier = {name: value.grad.clone() for name, value in model.named_parameters()}
    found = weight_gradients(model, data, names, loss=loss)
    for name, gradient in expected.items():
        assert_close(found[name].leading.dense(), gradient.leading.dense(), TERMS)
    assert all(torch.equal(v.grad, earlier[name]) for name, v in model.named_parameters())


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
    masked = [*data, {**data[0], "labels": torch.full_like(data[0]["labels"], -100)}]
    with pytest.raises(ValueError, match=r"loss of batch 2 is not finite: nan; check its labels"):
        weight_gradients(model, masked, [name])
    with pytest.raises(ValueError, match=r"is of shape \(4,\); one number is needed"):
        weight_gradients(model, data, [name], loss=lambda m, b: m(**b).loss * torch.ones(4))
    with pytest.raises(TypeError, match="a batch is a tuple; a mapping of the model's arguments"):
        weight_gradients(model, [(data[0]["input_ids"],)], [name])
    with pytest.raises(ValueError, match="modules is empty"):
        weight_gradients(model, data, [])
    for field in ("at_once", "kept"):
        with pytest.raises(ValueError, match=f"{field} must be at least 1, got -1"):
            weight_gradients(model, data, [name], **{field: -1})
    with torch.inference_mode(), pytest.raises(ValueError, match="inside torch"):
        weight_gradients(model, data, [name])
    with pytest.raises(ValueError, match="loss of batch 0 is on the meta device"):
        weight_gradients(make("llama").to("meta"), data, [name])
    assert [*weight_gradients(model, data, [name, name])] == [name]
    with pytest.raises(AttributeError):
        weight_gradients(model, data, ["model.nothing"])


def test_the_gradient_by_a_layer_that_no_batch_calls_is_zero():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 5), torch.nn.Linear(6, 3)])
    first = lambda m, x: m[0](x).sum()  # noqa: E731
    called, other = weight_gradients(model, [torch.ones(2, 4)], ["0", "1"], loss=first).values()
    assert called.energy > 0
    assert other.energy == 0
    assert other.leading.shape == (3, 6)
    with pytest.raises(ValueError, match="no gradient reached 1: no batch calls it, nor any other"):
        weight_gradients(
            model, [torch.ones(2, 4)], ["1"], loss=lambda m, x: (m[0](x.requires_grad_())).sum()
        )


@pytest.mark.parametrize("power", [-12, 0, 12])
def test_small_and_large_gradients_in_float16_are_kept(power):
    """Its roundoff is 2**-11; what is below 2**-24 would be lost, above 2**16 infinite."""
    half = make("llama").half().eval()
    names, data = targets("llama", half), batches()
    found = weight_gradients(half, data, names, loss=lambda m, b: m(**b).loss * 2.0**power)
    exact = weight_gradients(half.float(), data, names)
    for name, gradient in exact.items():
        difference = found[name].leading.dense() / 2.0**power - gradient.leading.dense()
        assert float(difference.square().sum()) <= 2.0**-12 * gradient.energy


def test_an_input_that_is_changed_in_place_is_named():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

    def loss(m, x):
        h = x * 1.0
        y = m[0](h)
        h += y.detach()
        return (m[1](h) + y).square().sum()

    with pytest.raises(ValueError, match="0: its input was changed in place after the call"):
        weight_gradients(model, [torch.ones(2, 4)], ["0", "1"], loss=loss)
    copied = weight_gradients(model, [torch.ones(2, 4)], ["1"], loss=loss)
    assert copied["1"].energy > 0
