"""Weighted sums of adapters: exact as large as all together, or the method's fit of a size."""

from __future__ import annotations

import math

import peft
import pytest
import torch

from tests.tnlib_adapters.adapters import adapted, alone, moved
from tests.tnlib_adapters.expert_models import mixture
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import TARGETS, logits, make
from tests.tolerances import rounding
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = [0.7, -1.3]
# Sums of up to a hundred products, and factorisations of them.
TERMS = 400


def two(method, arch):
    """A model with two adapters, of which the second adapts fewer weights."""
    model, _ = adapted(method, arch, **alone(method))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model)
        fields = {"target_modules": TARGETS[arch][:-1]} | alone(method)
        model.add_adapter("second", METHODS[method](**fields))
        model.set_adapter("second")
        moved(model)
    return model


def deltas(model, name):
    """Dense updates of an adapter by weight, of experts by that of each."""
    found = {}
    for key, layer in model.named_modules():
        if isinstance(layer, WeightLayer) and name in layer.held:
            update = layer.stored(name)
            experts = getattr(update, "n_experts", None)
            numbers = [()] if experts is None else [(e,) for e in range(experts)]
            found |= {(key, *n): update.delta(*n).detach().double() for n in numbers}
    return found


def distance(model, name):
    """Relative distance of an adapter from the sum."""
    first, second, found = (deltas(model, n) for n in ("default", "second", name))
    off, total = [], []
    for key, delta in found.items():
        expected = WEIGHTS[0] * first.get(key, 0) + WEIGHTS[1] * second.get(key, 0)
        off.append(float(torch.linalg.norm(delta - expected)))
        total.append(float(torch.linalg.norm(expected)))
    assert found.keys() == first.keys() | second.keys()
    return math.hypot(*off) / math.hypot(*total)


def check_sums(model):
    active = [*model.active_adapters]
    allowed = rounding(torch.float32, TERMS)
    error = model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum")
    assert distance(model, "sum") <= allowed
    assert error <= allowed
    error = model.add_weighted_adapter(["default", "second"], WEIGHTS, "small", "svd", svd_rank=2)
    assert abs(distance(model, "small") - error) <= allowed
    assert 0.01 < error < 1
    assert model.active_adapters == active


@pytest.mark.parametrize("arch", ["llama", "phi3"])
@pytest.mark.parametrize("method", MERGEABLE)
def test_sums(method, arch):
    check_sums(two(method, arch))


@pytest.mark.parametrize("method", MERGEABLE)
def test_sums_over_experts(method):
    fields = {"target_parameters": "all-experts"} | alone(method)
    model = peft.get_peft_model(mixture("Qwen3MoeExperts", "eager"), METHODS[method](**fields))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        moved(model, 0.05)
        other = fields | {"target_parameters": ["experts.down_proj"]}
        model.add_adapter("second", METHODS[method](**other))
        model.set_adapter("second")
        moved(model, 0.05)
    check_sums(model)


@pytest.mark.parametrize("method", MERGEABLE)
def test_a_sum_is_saved_as_any_adapter(method, tmp_path):
    model = two(method, "llama")
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", "cat")
    model.set_adapter("sum")
    after = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "sum")
    assert torch.equal(logits(again), after)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((["default"], [1.0, 2.0], "new"), ValueError, "one number for each"),
        ((["nowhere"], [1.0], "new"), ValueError, "no adapter 'nowhere'"),
        ((["default"], [1.0], "second"), ValueError, "already"),
        ((["default"], [math.nan], "new"), ValueError, "finite"),
        ((["default"], [1.0], "new", "ties"), ValueError, "to_lora"),
        ((["default"], [1.0], "new", "linear", 4), ValueError, "svd_rank is for"),
    ],
)
def test_bad_sums_are_refused(arguments, error, says):
    model = two("lotr", "llama")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(error, match=says):
        model.add_weighted_adapter(*arguments)
    assert [name for name, _ in model.named_modules()] == names
    assert set(model.peft_config) == {"default", "second"}


def test_series_adapters_cannot_be_summed():
    model, _ = adapted("adp", "llama", **alone("adp"))
    with pytest.raises(TypeError, match="not a change of the weight"):
        model.add_weighted_adapter(["default"], [1.0], "new")
    assert set(model.peft_config) == {"default"}


def pair(method, first, second):
    """Two adapters of a model, with the fields of each."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        own = METHODS[method](**(first | alone(method)))
        model = peft.get_peft_model(make("llama"), own, adapter_name="default")
        moved(model)
        model.add_adapter("second", METHODS[method](**(second | alone(method))))
        model.set_adapter("second")
        moved(model)
    return model


@pytest.mark.parametrize("method", [m for m in MERGEABLE if m != "lorta"])
@pytest.mark.parametrize(
    "fields",
    [
        ({"layers_to_transform": [0]}, {"layers_to_transform": [1]}),
        (
            {"target_modules": r".*\.[qv]_proj", "exclude_modules": ["v_proj"]},
            {"target_modules": ["v_proj"]},
        ),
        ({"target_modules": "all-linear"}, {}),
    ],
    ids=["layers", "modules", "all-linear"],
)
def test_every_weight_of_every_adapter_is_in_the_sum(method, fields):
    targets = {"target_modules": ["q_proj", "v_proj"]}
    check_sums(pair(method, *(targets | own for own in fields)))


@pytest.mark.parametrize(
    "fields",
    [
        ({"target_modules": ["q_proj"]}, {"target_modules": ["o_proj"]}),
        ({"alpha_pattern": {"v_proj": 3.0}}, {}),
    ],
)
def test_a_sum_that_shared_cores_cannot_hold_is_refused(fields):
    """LoRTA shares all cores: nothing of one weight alone can be zero, or larger."""
    targets = {"target_modules": ["q_proj", "v_proj"]}
    model = pair("lorta", *(targets | own for own in fields))
    with pytest.raises(ValueError, match=r"no LoRTAConfig of their sizes.*take .*'svd'"):
        model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum")
    assert set(model.peft_config) == {"default", "second"}
    error = model.add_weighted_adapter(["default", "second"], WEIGHTS, "near", "svd", svd_rank=24)
    assert abs(distance(model, "near") - error) <= rounding(torch.float32, TERMS)


def test_a_weight_with_a_shared_core_of_its_own_can_be_zero():
    """LoRTA has a factor for every size of the weights: the weights of one size can be zero."""
    check_sums(pair("lorta", {"target_modules": ["q_proj"]}, {"target_modules": ["v_proj"]}))


@pytest.mark.parametrize(
    "fields", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}]
)
def test_what_is_trained_beside_cores_has_no_sum(fields):
    model, _ = adapted("lotr", "llama", **fields)
    with pytest.raises(ValueError, match="only adapters of cores alone"):
        model.add_weighted_adapter(["default"], [1.0], "new")


def test_frozen_adapters_stay_frozen(tmp_path):
    two("lotr", "llama").save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    model.load_adapter(tmp_path / "second", "second")
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum")
    assert not any(parameter.requires_grad for parameter in model.parameters())
