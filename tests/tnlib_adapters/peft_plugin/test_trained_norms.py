"""Norms that are trained: they start as the base's bit for bit, in whatever dtype the model is."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, logits, make, train
from tnlib_adapters.peft_plugin.trained_norms import TrainedNorm, is_norm

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
HALVES = (torch.float16, torch.bfloat16)
both = pytest.mark.parametrize("method", ["rep", "adp"])


def pretrained(name, dtype=torch.float32):
    """A model whose norms have weights as after training, all different."""
    base = make(name)
    generator = torch.Generator().manual_seed(3)
    for module in base.modules():
        if is_norm(module):
            for parameter in module.parameters():
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return base.to(dtype).eval()


def adapted(base, method, name, **kwargs):
    config = METHODS[method](target_modules=TARGETS[name], dropout=0.0)
    return peft.get_peft_model(base, config, **kwargs).eval()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "vit"])
@both
def test_the_start_is_the_base_bit_for_bit(method, name, dtype):
    reference = pretrained(name, dtype)
    model = adapted(pretrained(name, dtype), method, name)
    assert torch.equal(logits(model), logits(reference))
    norms = [m for m in model.modules() if isinstance(m, TrainedNorm)]
    assert norms
    assert {p.dtype for norm in norms for p in norm.parameters()} == {torch.float32}
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(reference))
    assert torch.equal(logits(model.unload()), logits(reference))


@pytest.mark.parametrize("cast", ["float", "half", "double", "bfloat16"])
def test_a_model_may_be_cast_afterwards(cast):
    model = adapted(pretrained("llama", torch.bfloat16), "rep", "llama")
    for m in (model, copy.deepcopy(model)):
        getattr(m, cast)()
        dtype = next(m.parameters()).dtype
        assert logits(m).dtype == dtype
        assert torch.isfinite(logits(m)).all()


def test_a_norm_has_what_the_bases_has():
    model = adapted(pretrained("llama", torch.bfloat16), "rep", "llama")
    norm = next(m for m in model.modules() if isinstance(m, TrainedNorm))
    assert norm.variance_epsilon == 1e-6
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = norm.no_such_thing


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@both
def test_norms_of_offloaded_models_train_and_are_saved(method, dtype, tmp_path):
    """Accelerate keeps the values elsewhere, and PEFT's copies would have none."""
    expected = logits(pretrained("llama", dtype))
    base = pretrained("llama", dtype)
    cpu_offload(base, execution_device="cpu")
    model = adapted(base, method, "llama")
    assert_same_outputs(logits(model), expected)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(parameter.is_meta for parameter in own.values())
    before = {name: p.detach().clone() for name, p in own.items()}
    train(model)
    moved = [name for name, p in own.items() if not torch.equal(p, before[name])]
    assert any("modules_to_save" in name for name in moved)
    outputs = logits(model.eval())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(pretrained("llama", dtype), tmp_path).eval()
    assert_same_outputs(logits(loaded), outputs)


class Running(nn.Module):
    """A layer, and a norm that keeps statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.a(x))


def test_statistics_are_kept_in_the_copy():
    base = Running().to(torch.bfloat16)
    model = peft.get_peft_model(base, METHODS["rep"](target_modules=["a"]))
    x = torch.randn(16, 8).bfloat16()
    model.train()(x)
    (norm,) = (m for m in model.modules() if isinstance(m, TrainedNorm))
    assert norm.num_batches_tracked == 1
    outputs = model.eval()(x).detach()
    merged = model.merge_and_unload()
    assert merged.norm.num_batches_tracked == 1
    assert type(merged.norm) is nn.BatchNorm1d
    assert_same_outputs(merged(x).detach(), outputs)
