"""Which modules are adapted, what is reported of them, and how many values they train."""

from __future__ import annotations

import itertools
import re

import peft
import pytest
import torch
import transformers as hf

from tests.tnlib_adapters.adapters import alone, every_method
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import MAKERS, TARGETS, make, train
from tnlib_adapters import count
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
# What is read from the names alone is the same code for all methods.
few_methods = pytest.mark.parametrize("method", ["dota", "lorta"])
# Every architecture with the method that reads its heads and with another one; the rest if slow.
in_turn = pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=() if method in ("lorta", other) else pytest.mark.slow)
        for name, other in zip(
            sorted(MAKERS), itertools.cycle(["dota", "adp", "lotr", "rep"]), strict=False
        )
        for method in sorted(METHODS)
    ],
)


def names(model):
    """Names of the adapted modules in the base model."""
    prefix = "base_model.model."
    found = [n for n, module in model.named_modules() if isinstance(module, NetworkLayer)]
    assert all(name.startswith(prefix) for name in found)
    return [name.removeprefix(prefix) for name in found]


def adapt(method, name="llama", **kwargs):
    """A model adapted with the cores alone."""
    return peft.get_peft_model(make(name), METHODS[method](**(alone(method) | kwargs)))


def layers(*leaves, numbers=(0, 1)):
    """Names in Llama."""
    return sorted(f"model.layers.{k}.{leaf}" for k in numbers for leaf in leaves)


@in_turn
def test_counts_are_those_of_the_model(method, name, tmp_path):
    with torch.device("meta"):
        skeleton = MAKERS[name]()
    make(name).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for targets in (TARGETS[name], None):
        model = peft.get_peft_model(make(name), METHODS[method](target_modules=targets))
        trained, _ = model.get_nb_trainable_parameters()
        for source in (make(name), skeleton, tmp_path, tmp_path / "config.json"):
            found = count(source, METHODS[method](target_modules=targets))
            assert found.total == trained
            assert sorted(found.targets) == sorted(names(model))
    # A model that is adapted already counts as its base does, whatever device it is on.
    expected = count(skeleton, METHODS[method](target_modules=TARGETS[name])).total
    on_meta = peft.get_peft_model(skeleton, METHODS[method](target_modules=TARGETS[name]))
    assert on_meta.get_nb_trainable_parameters()[0] == expected
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    adapted = on_meta.get_base_model()
    assert count(adapted, METHODS[method](target_modules=TARGETS[name])).total == expected


@pytest.mark.parametrize(
    ("method", "which"),
    [(method, "only") for method in sorted(METHODS)] + [("lotr", "all"), ("rep", "all")],
)
def test_trained_biases_and_heads_are_counted(method, which):
    bias = "all" if which == "all" else f"{METHODS[method]().method}_only"
    kwargs = {"target_modules": TARGETS["bert"], "bias": bias, "task_type": "SEQ_CLS"}
    model = peft.get_peft_model(make("bert"), METHODS[method](**kwargs))
    trained, _ = model.get_nb_trainable_parameters()
    assert count(make("bert"), METHODS[method](**kwargs)).total == trained


@in_turn
def test_default_targets_train(method, name):
    torch.manual_seed(0)
    model = peft.get_peft_model(make(name), METHODS[method]())
    assert names(model)
    losses = train(model)
    assert losses[-1] < losses[0]
    report = model.base_model.target_report()
    assert set().union(*report.values()) == set(names(model))
    assert all(report.values())


@pytest.mark.parametrize(
    ("method", "name"),
    [("lorta", name) for name in ("llama", "gpt2", "bert", "phi3")]
    + [("adp", "llama"), ("dota", "gpt2"), ("rep", "bert"), ("lotr", "phi3")],
)
def test_all_linear_leaves_out_the_head(method, name):
    task, head = ("SEQ_CLS", "classifier") if name == "bert" else ("CAUSAL_LM", "lm_head")
    model = adapt(method, name, target_modules="all-linear", task_type=task)
    kinds = ("Linear", "Conv1D")
    linear = {n for n, module in make(name).named_modules() if type(module).__name__ in kinds}
    assert set(names(model)) == linear - {head}
    model.add_adapter("second", METHODS[method](target_modules="all-linear", task_type=task))
    for adapter in ("default", "second"):
        report = model.base_model.target_report(adapter)
        assert set().union(*report.values()) == linear - {head}


@every_method
def test_targets_are_selected(method):
    model = adapt(method, target_modules=["q_proj", "mlp.down_proj"], layers_to_transform=[1])
    assert names(model) == layers("self_attn.q_proj", "mlp.down_proj", numbers=[1])[::-1]
    model = adapt(method, target_modules=["q_proj"], layers_to_transform=0, layers_pattern="layers")
    assert names(model) == layers("self_attn.q_proj", numbers=[0])
    model = adapt(method, target_modules=["q_proj"], exclude_modules=["layers.1.self_attn.q_proj"])
    assert names(model) == layers("self_attn.q_proj", numbers=[0])
    model = adapt(method, target_modules=r".*\.1\.self_attn\.(q|k)_proj")
    assert names(model) == layers("self_attn.k_proj", "self_attn.q_proj", numbers=[1])[::-1]
    # Entries match whole parts of names: q_proj is no "proj".
    with pytest.raises(ValueError, match="not found in the base model"):
        adapt(method, target_modules=["proj"])


@few_methods
def test_the_report_names_what_every_entry_matched(method):
    model = adapt(method, target_modules=["q_proj", "mlp.up_proj", "layers.0.mlp.down_proj"])
    prefix = "model.layers.{}.{}".format
    assert model.base_model.target_report() == {
        "q_proj": [prefix(k, "self_attn.q_proj") for k in (0, 1)],
        "mlp.up_proj": [prefix(k, "mlp.up_proj") for k in (0, 1)],
        "layers.0.mlp.down_proj": [prefix(0, "mlp.down_proj")],
    }


@few_methods
def test_an_entry_that_matched_nothing_is_named_with_all_counts(method):
    counts = re.escape("(modules by entry: 'missing': 0, 'q_proj': 2, 'v_proj': 2)")
    message = rf"matched no module: \['missing'\] {counts}"
    with pytest.warns(UserWarning, match=message):
        model = adapt(method, target_modules=["q_proj", "missing", "v_proj"])
    assert names(model) == layers("self_attn.q_proj", "self_attn.v_proj")
    with pytest.warns(UserWarning, match=r"matched no module: \['typo'\]"):
        model.add_adapter("second", METHODS[method](target_modules=["typo", "q_proj"]))
    assert model.base_model.target_report("second") == {
        "q_proj": layers("self_attn.q_proj"),
        "typo": [],
    }


@few_methods
def test_nothing_matched_is_an_error(method):
    with pytest.raises(ValueError, match=r"\{'missing'\} not found in the base model"):
        adapt(method, target_modules=["missing"])
    hint = r"target_modules is a str, so it is a regular expression for whole names"
    with pytest.raises(ValueError, match=f"q_proj not found.*{hint}"):
        adapt(method, target_modules="q_proj")
    with pytest.raises(ValueError, match=f"q_proj.*{hint}"):
        peft.get_peft_model(make("llama"), METHODS[method](target_modules="q_proj"))


def mixtral():
    config = hf.MixtralConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    return hf.MixtralForCausalLM(config)


# Which modules are adapted is the same for every method.
@pytest.mark.parametrize(
    ("method", "targets"),
    [("lotr", "all-linear"), ("dota", ["q_proj", "gate_up_proj"]), ("adp", "all-linear")],
    ids=["all-linear", "by name", "series"],
)
def test_experts_held_as_bare_parameters_are_named(method, targets):
    model = mixtral()
    message = r"not adapted: model\.layers\.0\.mlp\.experts\.gate_up_proj"
    with pytest.warns(UserWarning, match=message):
        model = peft.get_peft_model(model, METHODS[method](target_modules=targets, **alone(method)))
    assert "model.layers.0.self_attn.q_proj" in names(model)
    assert not any("experts" in name for name in names(model))


@few_methods
def test_experts_alone_are_refused_by_name(method):
    with pytest.raises(ValueError, match=r"which are not adapted: .*mlp\.experts\.down_proj"):
        peft.get_peft_model(mixtral(), METHODS[method](target_modules=["down_proj"]))


@few_methods
def test_a_target_inside_a_tied_pair_is_warned_of(method):
    config = METHODS[method](target_modules=["q_proj", "lm_head"], **alone(method))
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        model = peft.get_peft_model(make("qwen2"), config)
    assert "lm_head" in names(model)
