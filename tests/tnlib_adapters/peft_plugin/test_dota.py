"""What is DoTA's alone under PEFT: theta_0, the residual, the random start."""

from __future__ import annotations

from unittest import mock

import peft
import pytest
import safetensors.torch
import torch

from tests.tnlib_adapters.models import (
    TARGETS,
    assert_same_model,
    assert_same_outputs,
    cores_in,
    logits,
    make,
    train,
)
from tests.tolerances import assert_close, rounding
from tnlib_adapters import DoTAConfig

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SUFFIX = ".dota_update.anchor_"


def config(name, **kwargs):
    return DoTAConfig(**({"r": 4, "target_modules": TARGETS[name]} | kwargs))


def trained(name, dtype=torch.float32, **kwargs):
    """An adapted model after a few steps, its losses and the base's outputs."""
    model = make(name, dtype)
    before = logits(model)
    model = peft.get_peft_model(model, config(name, **kwargs))
    return model, train(model), before


@pytest.mark.parametrize("start", [True, "random"])
def test_only_theta_trains_and_theta_0_is_saved_beside_it(start, tmp_path):
    model, losses, _ = trained("bert", init_weights=start)
    assert losses[-1] < losses[0]
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("dota_update" in n and "anchor" not in n for n in trainable)
    model.save_pretrained(tmp_path)
    saved = cores_in(safetensors.torch.load_file(tmp_path / "adapter_model.safetensors"))
    anchors = {key for key in saved if SUFFIX in key}
    assert len(saved) == len(trainable) + len(anchors)
    assert len(anchors) == (len(trainable) if start is True else 0)
    # theta_0 is what theta started from: the anchor never moved, theta did.
    fresh = peft.get_peft_model(make("bert"), config("bert", init_weights=start))
    values = peft.get_peft_model_state_dict(fresh)
    for key in anchors:
        assert torch.equal(saved[key], values[key])
        assert not values[key.replace("anchor_", "deviation_")].any()
        assert saved[key.replace("anchor_", "deviation_")].any()


@pytest.mark.parametrize("start", [True, False])
def test_nothing_is_decomposed_on_load(start, tmp_path):
    model, _, _ = trained("llama", init_weights=start)
    model.save_pretrained(tmp_path)
    with mock.patch("tnlib_adapters.networks.pretrained.mpo_decompose", side_effect=AssertionError):
        loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
        plain = make("llama")
        plain.load_adapter(str(tmp_path))
    assert_same_model(loaded, model)
    assert_same_outputs(logits(plain), logits(model))


def test_adapters_with_and_without_theta_0_share_a_model(tmp_path):
    outputs = {}
    for name, start in (("one", True), ("two", "random")):
        model, _, _ = trained("bert", init_weights=start)
        outputs[name] = logits(model)
        model.save_pretrained(tmp_path / name)
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "one", adapter_name="one")
    loaded.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("two", "one"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), outputs[name])


def test_a_random_start_is_the_base_model_and_merges():
    model, _, before = trained("gpt2", init_weights="random")
    expected = logits(model)
    assert not torch.equal(expected, before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert_same_outputs(logits(model.merge_and_unload()), expected)


def test_the_residual_start_is_the_same_training():
    one, losses, _ = trained("bert", torch.float64)
    two, others, before = trained("bert", torch.float64, residual=True)
    # Adam divides by a gradient or 1e-8, so what is off by u of a gradient near zero is off by 1e8
    # u of a step.
    assert losses == pytest.approx(others, rel=1e8 * rounding(torch.float64))
    with two.disable_adapter():
        assert torch.equal(logits(two), before)
    two.merge_adapter()
    two.unmerge_adapter()
    assert_close(logits(two), logits(one), condition=1e8)


def test_the_residual_is_not_saved(tmp_path):
    model, _, _ = trained("llama", residual=True)
    model.save_pretrained(tmp_path)
    saved = cores_in(safetensors.torch.load_file(tmp_path / "adapter_model.safetensors"))
    trainable, _ = model.get_nb_trainable_parameters()
    assert sum(tensor.numel() for tensor in saved.values()) == 2 * trainable
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert_same_outputs(logits(loaded), logits(model))


def test_progress_is_shown_where_it_is_asked_for(capsys):
    peft.get_peft_model(make("bert"), config("bert", progressbar=True))
    assert "initialising cores" in capsys.readouterr().err
    peft.get_peft_model(make("bert"), config("bert"))
    assert capsys.readouterr().err == ""


def test_a_weight_with_nan_is_refused_by_name_and_the_model_is_left_as_it_was():
    model = make("bert")
    layer = model.bert.encoder.layer[1].attention.self.query
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer.1.attention.self.query.*nan or inf"):
        peft.get_peft_model(model, config("bert"))
    assert type(model.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())
