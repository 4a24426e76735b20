"""What PEFT promises of adapters in memory: several by name, switching, deleting, failing."""

from __future__ import annotations

import copy
from unittest import mock

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from tests.tnlib_adapters.adapters import (
    adapted,
    alone,
    every_method,
    method_of_each_structure,
    parts,
    second,
    two_adapters,
)
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TARGETS, logits, make, train
from tnlib_adapters import DoTAConfig, NetworkConfig
from tnlib_adapters.peft_plugin import registry
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SHARING = ["lotr", "lorta"]


def assert_untouched(model, name):
    """A model that was refused an adapter is as it was made."""
    fresh = make(name)
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in fresh.named_modules()
    ]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert torch.equal(logits(model), logits(fresh))


@every_method
def test_adapters_are_switched_by_name(method):
    model, outputs, before = two_adapters(method)
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        assert torch.equal(logits(model), outputs[name])
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(f".{name}." in n for n in trained)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_two_active_series_adapters_follow_each_other():
    model, outputs, _ = two_adapters("adp")
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    model.base_model.set_adapter(["second", "default"])
    assert not torch.allclose(logits(model), both, rtol=0, atol=1e-6)
    assert not any(torch.allclose(both, one, rtol=0, atol=1e-6) for one in outputs.values())


@pytest.mark.parametrize("method", ["rep", "adp"])
def test_two_adapters_that_train_the_same_norms_cannot_be_active_at_once(method):
    model, before = adapted(method, "llama")
    train(model)
    first = logits(model)
    model.add_adapter("second", second(method, train_norms=True))
    model.set_adapter("second")
    assert torch.equal(logits(model), before)
    train(model)
    assert not torch.equal(logits(model), first)
    with pytest.raises(ValueError, match="modules_to_save"):
        model.base_model.set_adapter(["default", "second"])
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


@every_method
def test_a_deleted_adapter_leaves_nothing_behind(method):
    model, outputs, before = two_adapters(method)
    model.delete_adapter("default")
    assert list(model.peft_config) == ["second"]
    assert torch.equal(logits(model), outputs["second"])
    names = [*model.state_dict(), *(n for n, _ in model.named_modules())]
    assert not any("default" in name for name in names)
    for part in parts(model):
        assert "default" not in part.active_adapters
        for value in vars(part).values():
            assert not (isinstance(value, dict | list | set | tuple) and "default" in value)
    stores = [name for name, _ in model.named_modules() if "corestore" in name]
    assert bool(stores) == (method in SHARING)
    # A new adapter of the same name starts anew.
    model.add_adapter("default", second(method))
    model.set_adapter("default")
    assert torch.equal(logits(model), before)
    train(model)
    model.set_adapter("second")
    assert torch.equal(logits(model), outputs["second"])


@method_of_each_structure
def test_the_last_adapter_can_be_deleted_and_another_added(method):
    model, before = adapted(method, "llama", **alone(method))
    train(model)
    model.delete_adapter("default")
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    assert torch.equal(logits(model.base_model.model), before)
    model.add_adapter("next", second(method))
    model.set_adapter("next")
    losses = train(model)
    assert losses[-1] < losses[0]
    assert torch.equal(logits(model.unload()), before)


@method_of_each_structure
def test_disabling_nests(method):
    model, before = adapted(method, "llama")
    train(model)
    trained = logits(model)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), trained)


@method_of_each_structure
def test_a_deep_copy_is_independent(method):
    model, _ = adapted(method, "llama")
    train(model)
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    trainable = [p for p in twin.parameters() if p.requires_grad]
    assert not {id(p) for p in trainable} & {id(p) for p in model.parameters()}
    assert twin.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    train(twin)
    assert torch.equal(logits(model), expected)
    changed = logits(twin)
    assert not torch.equal(changed, expected)
    # The parameters that the copy names are those that it uses.
    originals = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(originals[name])
    assert torch.equal(logits(twin), expected)


@pytest.mark.parametrize("first", sorted(METHODS))
def test_a_model_takes_one_method_at_a_time(first):
    model, _ = adapted(first, "llama")
    train(model)
    expected = logits(model)
    other = "lotr" if first == "dota" else "dota"
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("second", METHODS[other](target_modules=["q_proj"]))
    assert torch.equal(logits(model), expected)
    assert not any("second" in key for key in model.state_dict())


@method_of_each_structure
def test_a_first_adapter_that_fails_leaves_the_model_as_it_was(method):
    model = make("llama")
    # The last norm comes after the layers, which are all adapted when it fails.
    config = METHODS[method](target_modules=["q_proj", "norm"], **alone(method))
    with pytest.raises(TypeError, match=r"model\.norm: cannot adapt a LlamaRMSNorm"):
        peft.get_peft_model(model, config)
    assert_untouched(model, "llama")
    assert not hasattr(model, "corestore")
    # It takes a good one afterwards.
    model = peft.get_peft_model(model, second(method))
    losses = train(model)
    assert losses[-1] < losses[0]


@method_of_each_structure
def test_values_that_cannot_be_set_leave_the_model_as_it_was(method):
    model = make("bert")
    config = METHODS[method](target_modules=TARGETS["bert"], modules_to_save=["classifier"])
    failure = mock.patch.object(type(config), "initial_cores", side_effect=ValueError("broken"))
    with failure, pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query: broken"):
        peft.get_peft_model(model, config)
    assert_untouched(model, "bert")


@method_of_each_structure
def test_an_adapter_that_fails_leaves_the_others_working(method):
    model, before = adapted(method, "llama")
    train(model)
    expected, state = logits(model), set(model.state_dict())
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    config = METHODS[method](target_modules=["q_proj", "up_proj", "act_fn"], **alone(method))
    with pytest.raises(TypeError, match=r"act_fn: cannot adapt a"):
        model.add_adapter("second", config)
    failure = mock.patch.object(type(config), "initial_cores", side_effect=ValueError("broken"))
    config = METHODS[method](target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    with failure, pytest.raises(ValueError, match=r"q_proj: broken"):
        model.add_adapter("second", config)
    assert list(model.peft_config) == ["default"]
    assert set(model.state_dict()) == state
    assert {n: p.requires_grad for n, p in model.named_parameters()} == grads
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), before)


def test_attention_that_bypasses_its_layer_is_refused():
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"attention.out_proj cannot be adapted: Multihead"):
        peft.get_peft_model(model, DoTAConfig(target_modules=["out_proj"]))


@method_of_each_structure
def test_a_model_shows_the_cores(method):
    model, _ = adapted(method, "llama")
    text = repr(model)
    layer = next(part for part in parts(model) if isinstance(part, NetworkLayer))
    for core in layer.update("default").network.cores:
        shape = "x".join(map(str, layer.update("default").network.shapes[core.key]))
        assert f"{core.key}: {shape}" in text


def test_an_old_peft_is_refused():
    with (
        mock.patch.object(registry.peft, "__version__", "0.18.1"),
        pytest.raises(
            ImportError, match=rf"needs peft {registry.OLDEST_PEFT} or newer, found 0\.18\.1"
        ),
    ):
        registry.register("dota", DoTAConfig)


@pytest.mark.parametrize("name", ["lora", "oft", "prompt_tuning"])
def test_a_method_of_pefts_own_is_not_replaced(name):
    kind = peft.PeftType[name.upper()]
    before = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    with pytest.raises(ValueError, match=f"'{name}' is a method of PEFT's own; choose another"):

        class Mine(NetworkConfig, method=name):
            pass

    assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is before


@pytest.mark.parametrize("name", ["Mine", "my method"])
def test_a_name_that_is_no_prefix_is_refused(name):
    with pytest.raises(ValueError, match="lower-case identifier"):

        class Mine(NetworkConfig, method=name):
            pass

    assert name.upper() not in peft.PeftType.__members__


def test_a_method_that_is_declared_again_replaces_the_first():
    for scale in (1.0, 2.0):

        class TwiceConfig(DoTAConfig, method="declared_twice"):
            factor = scale

    kind = peft.PeftType.DECLARED_TWICE
    assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is TwiceConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[kind] is TwiceConfig.tuner
    assert PEFT_TYPE_TO_CONFIG_MAPPING[kind].factor == 2.0
    model = peft.get_peft_model(make("bert"), TwiceConfig(r=2, target_modules=["query"]))
    assert type(model.base_model) is TwiceConfig.tuner
    assert [member.value for member in peft.PeftType].count("DECLARED_TWICE") == 1


def test_a_configuration_without_a_method_is_refused():
    with pytest.raises(TypeError, match="NetworkConfig is no method; declare a subclass"):
        NetworkConfig()
