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
from tests.tolerances import assert_close
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


class OnePlusRMSNorm(nn.Module):
    """A norm that multiplies by one plus its weight, as Gemma's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class Gated(nn.Module):
    """A norm of two arrays."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, gate):
        return nn.functional.rms_norm(x * gate, x.shape[-1:]) * self.weight


def layer_norm(weight):
    norm = nn.LayerNorm(len(weight))
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.fill_(3.0)
    return norm


@pytest.mark.parametrize("power", [-6, -1, 0, 3])
@pytest.mark.parametrize("kind", [layer_norm, Gated, OnePlusRMSNorm])
def test_the_multiplier_is_the_size_of_the_gain(kind, power):
    """Within half a power of two of it; the bias does not count."""
    generator = torch.Generator().manual_seed(power + 10)
    gain = 2.0**power * (1 + 0.1 * torch.randn(256, generator=generator))
    norm = kind(gain - 1 if kind is OnePlusRMSNorm else gain)
    apart = TrainedNorm(norm, scaled=True)
    assert float(apart.multipliers) == 2.0**power
    assert torch.equal(apart.weight * apart.multipliers, norm.weight)


def test_norms_that_are_zero_or_keep_statistics_are_stored_as_they_are():
    assert float(TrainedNorm(layer_norm(torch.zeros(8)), scaled=True).multipliers) == 1
    base = Running()
    model = peft.get_peft_model(base, METHODS["rep"](target_modules=["a"]))
    assert type(model.base_model.model.norm.modules_to_save["default"]) is nn.BatchNorm1d


class ScaleNorm(nn.Module):
    """A norm with one number, and one with parts."""

    def __init__(self, *, parts=False):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(0.25))
        self.a = nn.Linear(8, 8) if parts else None

    def forward(self, x):
        x = x if self.a is None else self.a(x)
        return nn.functional.normalize(x, dim=-1) * self.g * x.shape[-1] ** 0.5


@pytest.mark.parametrize("parts", [False, True])
def test_norms_of_one_number_are_multiplied_and_norms_with_parts_are_not(parts):
    base = Running()
    base.norm = ScaleNorm(parts=parts)
    x = torch.randn(4, 8)
    before = base(x).detach()
    model = peft.get_peft_model(base, METHODS["rep"](target_modules=["a"])).eval()
    norm = model.base_model.model.norm.modules_to_save["default"]
    assert torch.equal(model(x), before)
    assert type(norm) is (ScaleNorm if parts else TrainedNorm)
    assert parts or float(norm.multipliers) == 0.25


def test_values_without_multipliers_are_refused():
    apart = TrainedNorm(layer_norm(0.1 * torch.ones(8)), scaled=True)
    with pytest.raises(RuntimeError, match="comes without multipliers"):
        apart.load_state_dict(layer_norm(torch.ones(8)).state_dict(), strict=False)


def small_norms(name, dtype=torch.float32):
    base = pretrained(name, dtype)
    for module in base.modules():
        if is_norm(module):
            for parameter in module.parameters():
                parameter.data *= 0.07
    return base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "bert"])
@both
def test_a_step_changes_norms_by_the_rate_times_their_size(method, name, dtype, tmp_path):
    reference = small_norms(name, dtype)
    model = adapted(small_norms(name, dtype), method, name)
    assert torch.equal(logits(model), logits(reference))
    norms = [m for m in model.modules() if isinstance(m, TrainedNorm)]
    stored = [norm.weight.detach().clone() for norm in norms]
    rate = 2.0**-7
    train(model, steps=1, lr=rate)
    steps = []
    for norm, theta in zip(norms, stored, strict=True):
        if torch.equal(norm.weight, theta):
            continue
        steps.append(float((norm.weight.detach() - theta).abs().max()))
        assert float(norm.multipliers) == 2.0**-4
        merged = norm.as_base().weight
        assert merged.dtype == dtype
        assert_close(merged, norm.weight * norm.multipliers)
    # Adam's epsilon shortens the steps of small gradients.
    assert max(steps) == pytest.approx(rate, rel=1e-3)
    outputs = logits(model.eval())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(small_norms(name, dtype), tmp_path).eval()
    assert torch.equal(logits(loaded), outputs)
    plain = small_norms(name, dtype)
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain.eval()), outputs)


@pytest.mark.parametrize("scaled", [True, False])
def test_norms_without_autocast_have_the_bases_dtype(scaled, tmp_path):
    base = small_norms("llama", torch.bfloat16)
    config = METHODS["rep"](target_modules=["q_proj"], dropout=0.0, rate_scaling=scaled)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    norms = [n for n, p in model.named_parameters() if "norm" in n and p.requires_grad]
    assert norms
    assert {model.get_parameter(n).dtype for n in norms} == {torch.bfloat16}
    outputs = logits(model)
    assert torch.equal(outputs, logits(small_norms("llama", torch.bfloat16)))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(small_norms("llama", torch.bfloat16), tmp_path).eval()
    assert torch.equal(logits(loaded), outputs)
