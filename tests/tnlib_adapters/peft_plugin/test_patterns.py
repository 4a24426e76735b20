"""Sizes, scales and dropout by module, for every method."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch

from tests.tnlib_adapters.adapters import adapted, alone, every_method, moved, parts
from tests.tnlib_adapters.expert_models import mixture
from tests.tnlib_adapters.forms import METHODS, SITE
from tests.tnlib_adapters.models import assert_same_outputs, logits, make
from tests.tolerances import assert_close
from tnlib_adapters import Core, LoRTAConfig, LoTRConfig, Network, NetworkConfig, count, zeros
from tnlib_adapters.networks.rate_scaling import gain
from tnlib_adapters.peft_plugin.declarations import declared

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TARGETS = ["q_proj", "k_proj", "v_proj"]
WITH_ALPHA = [form for form in METHODS if hasattr(METHODS[form](), "alpha")]


@every_method
def test_a_pattern_is_the_configuration_of_another_size(method):
    """What a pattern names is what a model with that size everywhere has there."""
    plain = METHODS[method](target_modules=TARGETS, **alone(method))
    field = plain.size_field
    config = METHODS[method](
        target_modules=TARGETS, rank_pattern={r"layers\.1\..*q_proj": 2}, **alone(method)
    )
    two = METHODS[method](target_modules=TARGETS, **({field: 2} | alone(method)))
    model = peft.get_peft_model(make("llama"), config)
    layers = {name: m for name, m in model.named_modules() if m in parts(model)}
    for name, layer in layers.items():
        site = dataclasses.replace(SITE, name=name)
        own = two if name.endswith("1.self_attn.q_proj") else plain
        assert config.for_weight(name).network(site).shapes == own.network(site).shapes
        assert layer.update("default").declared.n_params > 0
    assert count(make("llama"), config).total == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("kind", [LoTRConfig, LoRTAConfig])
def test_weights_of_another_size_share_among_themselves(kind):
    config = kind(r=4, target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 3})
    model = peft.get_peft_model(make("llama"), config)
    shared = {c.key for part in parts(model) for c in part.update("default").declared.cores}
    ranks = {key: value.shape for key, value in _store(model).named_values() if key in shared}
    assert {shape[1] for shape in ranks.values()} == {3, 4}
    assert all(("size3" in key) == (shape[1] == 3) for key, shape in ranks.items())


def _store(model):
    return model.base_model.model.corestore.held["default"]


@pytest.mark.parametrize("method", WITH_ALPHA)
def test_an_alpha_pattern_multiplies_the_update_and_its_steps(method):
    plain = METHODS[method](target_modules=TARGETS)
    double = METHODS[method](target_modules=TARGETS, alpha_pattern={"v_proj": 2 * plain.alpha})
    for name, factor in (("a.v_proj", 2), ("a.q_proj", 1)):
        site = dataclasses.replace(SITE, name=name)
        found, usual = gain(declared(double, site)), gain(declared(plain, site))
        assert found == pytest.approx(factor * usual)
        assert double.strength(site) == pytest.approx(factor * plain.strength(site))


@every_method
def test_patterns_are_saved(method, tmp_path):
    pattern = {"rank_pattern": {"q_proj": 2}}
    model, _ = adapted(method, "llama", **pattern, **alone(method))
    moved(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("method", [form for form in METHODS if form != "adp"])
def test_dropout_drops_what_enters_the_update(method):
    """In training some of the update is missing; in evaluation, and for the base, nothing is."""
    model, before = adapted(method, "llama", dropout=0.5, **alone(method))
    moved(model)
    after = logits(model)
    with torch.no_grad():
        first, second = (model.train()(**_given(model)).logits for _ in range(2))
    assert not torch.equal(first, second)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    plain, _ = adapted(method, "llama", dropout=0.0, **alone(method))
    plain.load_state_dict(model.state_dict())
    assert_same_outputs(logits(plain), after)


def _given(model):
    from tests.tnlib_adapters.models import inputs

    return inputs(model)


@pytest.mark.parametrize("method", ["lotr", "lorta", "rep"])
def test_rank_stabilised_scaling(method):
    plain, stable = (METHODS[method](use_rslora=value) for value in (False, True))
    size = plain.bottleneck if method == "rep" else plain.r
    ratio = gain(stable.network(SITE)) / gain(plain.network(SITE))
    assert ratio == pytest.approx(size**0.5)


@pytest.mark.parametrize(
    ("method", "fields", "error", "says"),
    [
        ("dota", {"alpha_pattern": {"q": 2.0}}, ValueError, "DoTAConfig has no alpha"),
        ("lotr", {"rank_pattern": {"q": 0}}, ValueError, "r must be at least 1"),
        ("lotr", {"rank_pattern": {"q": 2.5}}, TypeError, r"rank_pattern\['q'\] must be a number"),
        ("lotr", {"rank_pattern": ["q"]}, TypeError, "rank_pattern must be a dict"),
        ("lotr", {"rank_pattern": {"(": 2}}, ValueError, "rank_pattern"),
        ("lotr", {"alpha_pattern": {"q": -1}}, ValueError, "alpha"),
        ("lotr", {"dropout": 1.0}, ValueError, "dropout"),
        ("dota", {"use_rslora": True}, TypeError, "no factor alpha / r"),
    ],
)
def test_bad_patterns_are_refused(method, fields, error, says):
    with pytest.raises(error, match=says):
        METHODS[method](**fields)


def test_a_pattern_that_matches_nothing_is_warned_of():
    config = LoTRConfig(target_modules=TARGETS, rank_pattern={"nowhere": 2, "q_proj": 4})
    with pytest.warns(RuntimeWarning, match=r"rank_pattern.*\['nowhere'\]"):
        peft.get_peft_model(make("llama"), config)


@dataclasses.dataclass
class Plain(NetworkConfig, method="plain_pattern"):
    """A method of a user's own."""

    r: int = 4

    def network(self, site):
        cores = Core("A", ("r", "in")), Core("B", ("out", "r"), zeros)
        sizes = {"in": site.in_features, "out": site.out_features, "r": self.r}
        return Network(cores, sizes, ("out",), ("in",))


def test_methods_of_ones_own_have_patterns_and_dropout_too():
    config = Plain(target_modules=["q_proj"], rank_pattern={r"0\..*": 2}, dropout=0.1)
    model = peft.get_peft_model(make("llama"), config)
    first, second = (part.update("default").declared for part in parts(model))
    assert (first.sizes["r"], second.sizes["r"]) == (2, 4)
    assert first.dropout == 0.1
    assert_close(first.delta(first.initial()), torch.zeros(48, 48), size=1.0)


def test_a_configuration_that_fails_keeps_its_patterns():
    patterns = {"down_proj": 3, "nowhere": 2}
    fields = {"target_parameters": ["experts.down_proj"], "rank_pattern": dict(patterns)}
    config = METHODS["lotr"](**fields)
    with pytest.raises(RuntimeWarning, match="nowhere"):
        peft.get_peft_model(mixture("Qwen3MoeExperts", "eager"), config)
    assert config.rank_pattern == patterns
