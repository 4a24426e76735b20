"""Stored cores under PEFT and in files: multipliers, old files, weight decay."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import peft
import pytest
import safetensors.torch
import torch
from transformers import Trainer, TrainingArguments

from tests.tnlib_adapters.adapters import adapted, alone, every_method, moved
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import TERMS, logits, make, tokens, train
from tests.tolerances import assert_close
from tnlib_adapters import NetworkConfig, NetworkLinear, Site

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def model_of(method, **kwargs):
    return adapted(method, "llama", **kwargs)[0]


@every_method
def test_files_without_the_field_load_as_they_were_written(method, tmp_path):
    model = model_of(method, rate_scaling=False)
    train(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config.pop("rate_scaling") is False
    path.write_text(json.dumps(config))
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert not any("multipliers" in name or "deviation" in name for name in saved)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert loaded.peft_config["default"].rate_scaling is False
    assert torch.equal(logits(loaded), logits(model))
    plain = make("llama")
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain), logits(model))


@every_method
def test_the_field_is_true_for_new_adapters_and_saved(method, tmp_path):
    model = model_of(method)
    assert model.peft_config["default"].rate_scaling is True
    train(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rate_scaling"] is True
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert any(name.endswith(".multipliers") for name in saved)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert loaded.peft_config["default"].rate_scaling is True
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_field_is_a_flag(value):
    with pytest.raises(TypeError, match="rate_scaling must be True or False"):
        METHODS["lotr"](rate_scaling=value)


@every_method
def test_values_of_another_parametrisation_are_refused(method):
    states, cores = {}, alone(method)  # PEFT itself looks for what norms have
    for scaled in (True, False):
        model = model_of(method, rate_scaling=scaled, **cores)
        states[scaled] = peft.get_peft_model_state_dict(model)
    for scaled in (True, False):
        model = model_of(method, rate_scaling=scaled, **cores)
        before = logits(model)
        with pytest.raises(ValueError, match=f"set rate_scaling={not scaled}"):
            peft.set_peft_model_state_dict(model, states[not scaled])
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("scaled", [True, False])
@every_method
def test_files_of_another_parametrisation_are_refused(method, scaled, tmp_path):
    model_of(method, rate_scaling=scaled).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rate_scaling": not scaled}))
    with pytest.raises(ValueError, match=f"set rate_scaling={scaled}"):
        peft.PeftModel.from_pretrained(make("llama"), tmp_path)


@pytest.mark.parametrize("method", MERGEABLE)
def test_both_parametrisations_start_and_compute_alike(method):
    """One start, moved as far in values, is one function: multipliers are powers of two."""
    models = [model_of(method, rate_scaling=scaled, init_weights=False) for scaled in (True, False)]
    deltas = [
        [m.get_delta_weight("default") for m in model.modules() if hasattr(m, "get_delta_weight")]
        for model in models
    ]
    assert deltas[0]
    for scaled, plain in zip(*deltas, strict=True):
        assert scaled.any()
        if method == "dota":
            assert_close(scaled, plain, operations=TERMS)
        else:
            assert torch.equal(scaled, plain)


def layer(method, strength, values=None):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64)
    config = METHODS[method](init_weights=False)
    plain = NetworkLinear.from_linear(linear, config)
    network = plain.update.declared
    cores = config.initial_cores(network, linear.weight.detach()) if values is None else values
    return NetworkLinear(linear, network, cores, strength=strength)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("method", MERGEABLE)
def test_states_with_other_multipliers_are_the_same_function(method, in_place):
    one, other = layer(method, 1.0), layer(method, 32.0)
    moved(one)
    state = one.state_dict()
    expected = one.delta_weight()
    assert not torch.equal(other.delta_weight(), expected)
    if in_place:  # as transformers and accelerate load
        other = layer(method, 32.0)
        other.update._initialized = False
        with torch.no_grad():
            for name, value in other.state_dict(keep_vars=True).items():
                value.copy_(state[name])
    else:
        other.load_state_dict(state)
    assert torch.equal(other(torch.ones(1, 64)), one(torch.ones(1, 64)))
    assert torch.equal(other.delta_weight(), expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_state_without_multipliers_is_refused(method, strict):
    state = {k: v for k, v in layer(method, 1.0).state_dict().items() if "multipliers" not in k}
    with pytest.raises(RuntimeError, match="come without multipliers"):
        layer(method, 1.0).load_state_dict(state, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_state_with_multipliers_is_refused_without_rate_scaling(method, strict):
    with pytest.raises(RuntimeError, match="load them into one with rate_scaling=True"):
        layer(method, None).load_state_dict(layer(method, 1.0).state_dict(), strict=strict)


@pytest.mark.parametrize("default", [8.0, 0.0])
def test_own_methods_may_have_any_alpha(default):
    @dataclass
    class Own(NetworkConfig, method=f"own_{default:g}"):
        r: int = 4
        alpha: float = field(default_factory=lambda: default)

        def network(self, site):
            base = METHODS["lotr"](r=self.r).network(site)
            return replace(base, scale=self.alpha)

    site = Site("q_proj", 48, 64)
    assert Own().strength(site) == 1
    for alpha in (16.0, -16.0):
        assert Own(alpha=alpha).strength(site) == (2 if default else 1)
    linear = torch.nn.Linear(48, 64)
    adapted = NetworkLinear.from_linear(linear, Own(alpha=-16.0))
    assert torch.equal(adapted(torch.ones(1, 48)), linear(torch.ones(1, 48)))


def test_multipliers_that_were_never_loaded_are_named():
    adapted = layer("lotr", 1.0)
    adapted.update._initialized = False
    adapted.update.multipliers.zero_()
    with pytest.raises(RuntimeError, match=r"multipliers of g are no powers of two.*never loaded"):
        adapted(torch.ones(1, 64))


class Still(Trainer):
    """Nothing to learn, so that only weight decay moves what is stored."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(**inputs)
        return (outputs.loss * 0, outputs) if return_outputs else outputs.loss * 0


@pytest.mark.parametrize("scaled", [True, False])
def test_weight_decay_pulls_dota_to_its_start(scaled, tmp_path):
    model, before = adapted("dota", "bert", rate_scaling=scaled)
    data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens(rows=16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    Still(model=model, args=arguments, train_dataset=data).train()
    assert torch.equal(logits(model), before) is scaled


def test_weight_decay_shrinks_what_dota_has_learnt():
    model = model_of("dota")
    moved(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]

    def norms():
        return [float(m.get_delta_weight("default").detach().norm()) for m in layers]

    before = norms()
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    torch.optim.AdamW(weights, lr=1.0, weight_decay=0.5).step()
    assert all(after < old for old, after in zip(before, norms(), strict=True))
