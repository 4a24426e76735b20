"""A call that fails, at whatever step, leaves the model as it was."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_outputs,
    logits,
    make,
    train,
)
from tnlib_adapters import LoTRConfig
from tnlib_adapters.layers.update import Update
from tnlib_adapters.peft_plugin import tuner as tuners
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
every_method = pytest.mark.parametrize("method", sorted(METHODS))


class Interruption(BaseException):
    """What no ``except Exception`` catches, as Ctrl-C is."""


class Failing:
    """Fails at one of the calls of a function, and counts them."""

    def __init__(self, function, at=None, error=ValueError):
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error("stopped here")
        return self.function(*args, **kwargs)

    def __get__(self, instance, owner):
        """Bind as a function of a class does."""
        return self if instance is None else lambda *a, **k: self(instance, *a, **k)


def state(model):
    """Everything of a model that a call may have changed."""
    return (
        [(name, id(module), module.training) for name, module in model.named_modules()],
        [(name, id(value), value.requires_grad) for name, value in model.named_parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: copy.deepcopy(vars(c)) for name, c in getattr(model, "peft_config", {}).items()},
        [(m.active_adapters, m.merged) for m in model.modules() if isinstance(m, NetworkLayer)],
    )


def assert_same_state(model, before):
    after = state(model)
    assert after[:2] == before[:2]
    assert after[3:] == before[3:]
    assert after[2].keys() == before[2].keys()
    assert [n for n, value in after[2].items() if not torch.equal(value, before[2][n])] == []


def config(method, **kwargs):
    return METHODS[method](target_modules=TARGETS["llama"], **kwargs)


# Steps of an injection, each the name of a function and where it is.
INJECTION = {
    "create": (tuners.NetworkTuner, "_create_and_replace"),
    "allocate": (Update, "__init__"),
    "train in full": (tuners.NetworkTuner, "_mark_only_adapters_as_trainable"),
    "compare bases": (tuners.NetworkTuner, "_compare_bases"),
    "start": (Update, "set_initial"),
}


@pytest.mark.parametrize("step", sorted(INJECTION))
@pytest.mark.parametrize("error", [ValueError, Interruption])
@every_method
def test_injection_fails_at_every_step(method, step, error, monkeypatch):
    owner, name = INJECTION[step]
    counter = Failing(getattr(owner, name))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counter)
        peft.get_peft_model(make("llama"), config(method))
    calls = range(counter.calls)
    assert calls
    for at in {calls[0], calls[len(calls) // 2], calls[-1]}:
        model, wanted = make("llama"), config(method)
        before, fields = state(model), copy.deepcopy(vars(wanted))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Failing(getattr(owner, name), at, error))
            with pytest.raises(error, match="stopped here"):
                peft.get_peft_model(model, wanted)
        assert_same_state(model, before)
        assert vars(wanted) == fields


@pytest.mark.parametrize("step", sorted(INJECTION))
@every_method
def test_adding_a_second_adapter_fails_at_every_step(method, step, monkeypatch):
    owner, name = INJECTION[step]
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    before, outputs = state(model.get_base_model()), logits(model)
    model.train()
    second = METHODS[method](target_modules=["q_proj", "up_proj"])
    before = state(model.get_base_model())
    for at in (0, 1):
        failing = Failing(getattr(owner, name), at)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            if at == 1 and step in ("train in full", "compare bases"):
                continue
            with pytest.raises(ValueError, match="stopped here"):
                model.add_adapter("second", second)
        assert_same_state(model.get_base_model(), before)
    assert torch.equal(logits(model), outputs)
    model.add_adapter("second", second)


@every_method
def test_loading_what_does_not_fit_leaves_the_model(method, tmp_path):
    """Neither cores of other sizes nor embeddings of another vocabulary, nor missing ones."""
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    model.save_pretrained(tmp_path / "fits")
    larger = make("llama")
    larger.resize_token_embeddings(80, mean_resizing=False)
    resized = peft.get_peft_model(larger, config(method))
    resized.save_pretrained(tmp_path / "resized", save_embedding_layers=True)
    fields = json.loads((tmp_path / "fits" / "adapter_config.json").read_text())
    wider = {"r": 2} if "r" in fields else {"tt_rank": 2}
    (tmp_path / "other").mkdir()
    for file in (tmp_path / "fits").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(fields | wider))
    base = make("llama")
    before = state(base)
    for name, complaint in (
        ("resized", r"lm_head.weight is \(80, 48\).*resize the model's embeddings"),
        ("other", "in the file"),
    ):
        with pytest.raises(ValueError, match=complaint):
            PeftModel.from_pretrained(base, tmp_path / name)
        assert_same_state(base, before)
        assert not hasattr(base, "peft_config")
    assert_same_outputs(logits(PeftModel.from_pretrained(base, tmp_path / "fits")), logits(model))


def test_loading_into_a_trained_adapter_what_does_not_fit_keeps_it():
    model = peft.get_peft_model(make("llama"), config("lotr"))
    train(model)
    before = state(model)
    other = peft.get_peft_model(make("llama"), LoTRConfig(r=2, target_modules=TARGETS["llama"]))
    with pytest.raises(ValueError, match="in the file"):
        peft.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(other))
    assert_same_state(model, before)


# Steps of merging, before anything is written and while it is.
MERGING = {
    "compute": (NetworkLayer, "merged_with"),
    "form": (Update, "delta"),
    "write": (NetworkLayer, "set_base_weight"),
}


@pytest.mark.parametrize("unload", [False, True])
@pytest.mark.parametrize("step", sorted(MERGING))
@pytest.mark.parametrize("method", MERGEABLE)
def test_merging_fails_at_every_step(method, step, unload, monkeypatch):
    owner, name = MERGING[step]
    model = peft.get_peft_model(make("llama"), config(method))
    train(model)
    model.eval()
    whole = copy.deepcopy(model)
    counter = Failing(getattr(owner, name))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counter)
        whole.merge_adapter()
    before, outputs = state(model), logits(model)
    for at in range(counter.calls):
        with monkeypatch.context() as patch:
            failing = Failing(getattr(owner, name), at)
            # What takes the update out again may use the same function.
            patch.setattr(owner, name, failing)
            with pytest.raises(ValueError, match="stopped here"):
                model.merge_and_unload() if unload else model.merge_adapter()
        after = state(model)
        assert (after[0], after[1], after[3], after[4]) == (before[0], before[1], *before[3:])
        if step != "write" and at < counter.calls // 2:
            assert_same_state(model, before)
        assert_same_outputs(logits(model), outputs)
    assert_same_outputs(logits(model.merge_and_unload()), outputs)


@pytest.mark.parametrize("method", MERGEABLE)
def test_merging_what_is_not_finite_merges_nothing(method):
    model = peft.get_peft_model(make("llama"), config(method)).eval()
    layers = [m for m in model.modules() if isinstance(m, NetworkLayer)]
    for core in layers[-1].update("default").stored.values():
        core.data.fill_(float("inf"))
    before = state(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"layers.*not finite; nothing was merged"):
            merge(safe_merge=True)
        assert_same_state(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", MERGEABLE)
def test_updates_of_zero_merge_in_half_precision(method, dtype):
    """Some layers have learnt nothing; rounding takes nothing of that."""
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).to(dtype)
    names = ["0", "1", "2"]
    model = peft.get_peft_model(layers, METHODS[method](target_modules=names, **alone(method))).to(
        dtype
    )
    weights = [layer.base_layer.weight.clone() for layer in model.base_model.model[:3]]
    model.merge_adapter()
    for layer, weight in zip(model.base_model.model, weights, strict=False):
        assert layer.merged
        assert torch.equal(layer.base_layer.weight, weight)
