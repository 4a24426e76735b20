"""What is computed once for inference gives the same outputs, and is dropped when it must be."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import (
    assert_other_outputs,
    assert_same_outputs,
    inputs,
    logits,
    make,
    precise,
    train,
)
from tnlib_adapters import DoTAConfig, LoRTAConfig, NetworkLinear, cached, plans
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def adapted(kind="llama", method="dota", dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = METHODS[method](init_weights=False, **options)
    return peft.get_peft_model(make(kind, dtype), config).eval()


def kept(model):
    updates = [u for m in model.modules() if hasattr(m, "held") for u in m.held.values()]
    return [update.has_cached_update for update in updates]


# Linear layers and transposed ones, projections of their own and fused ones.
@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("gpt2", "llama") for method in METHODS]
    + [("bert", "rep"), ("phi3", "lorta")],
)
@torch.no_grad()
def test_outputs_are_those_without_the_cache(kind, method):
    model = adapted(kind, method, precise(kind))
    before = logits(model)
    with cached(model):
        inside = logits(model)
        with model.disable_adapter():
            base = logits(model)
    assert_same_outputs(inside, before)
    assert_other_outputs(inside, base)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_half_precision_models_stay_within_their_rounding(method):
    model = adapted("llama", method, torch.bfloat16)
    before = logits(model)
    with cached(model):
        inside = logits(model)
    assert inside.dtype == before.dtype == torch.bfloat16
    assert_same_outputs(inside, before)


def test_nothing_is_registered_and_everything_is_dropped_at_the_end():
    model = adapted()
    names = set(model.state_dict())
    with cached(model):
        assert set(model.state_dict()) == names
        assert all(kept(model))
    assert not any(kept(model))
    with pytest.raises(RuntimeError, match="stop"), cached(model):
        raise RuntimeError("stop")
    assert not any(kept(model))


def test_the_inner_of_two_contexts_leaves_the_outer_one():
    model = adapted()
    with cached(model):
        with cached(model):
            pass
        assert all(kept(model))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.double(),
    ],
    ids=["train", "load", "move"],
)
def test_training_loading_and_moving_drop_what_was_kept(change):
    model = adapted()
    with cached(model):
        change(model)
        assert not any(kept(model))


@torch.no_grad()
def test_an_update_of_the_base_weight_is_seen():
    linear = torch.nn.Linear(24, 36, dtype=torch.float64)
    layer = NetworkLinear.from_linear(linear, DoTAConfig(r=2)).eval()
    x = torch.randn(3, 24, dtype=torch.float64)
    with cached(layer):
        layer(x)
        layer.base.weight.add_(1.0)
        inside = layer(x)
    torch.testing.assert_close(inside, layer(x))


def test_calls_that_record_gradients_train_the_cores():
    model = adapted(method="lorta")
    with cached(model):
        model(**inputs(model)).logits.square().mean().backward()
    cores = [p for p in model.parameters() if p.requires_grad]
    assert cores
    assert all(core.grad is not None for core in cores)


def test_training_goes_on_after_the_cache():
    model, other = adapted(method="lotr"), adapted(method="lotr")
    with torch.no_grad(), cached(model):
        logits(model)
    first, second = train(model), train(other)
    assert first == second


@torch.no_grad()
def test_two_active_adapters_both_count():
    model = adapted(target_modules=["q_proj", "down_proj"])
    model.add_adapter("other", METHODS["dota"](init_weights=False, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    before = logits(model.eval())
    with cached(model):
        inside = logits(model)
    assert_same_outputs(inside, before)


@torch.no_grad()
def test_merging_and_unmerging_inside_keeps_the_function():
    model = adapted()
    before = logits(model)
    with cached(model):
        model.merge_adapter()
        assert_same_outputs(logits(model), before)
        model.unmerge_adapter()
        assert_same_outputs(logits(model), before)


@torch.no_grad()
def test_generated_text_is_the_same():
    model = adapted("gpt2", "lorta", torch.float64, target_modules="all-linear")
    prompt = torch.tensor([[1, 5, 9]])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(input_ids=prompt, **options)
    with cached(model):
        found = model.generate(input_ids=prompt, **options)
    # No two logits are near enough to change places by rounding.
    first, second = torch.stack(plain.logits).topk(2).values.unbind(-1)
    assert (first - second).min() > 1e-6
    assert torch.equal(found.sequences, plain.sequences)


@torch.no_grad()
def test_a_copy_made_inside_is_a_model_of_its_own():
    model = adapted()
    with cached(model):
        other = copy.deepcopy(model)
        assert_same_outputs(logits(other), logits(model))
    assert_same_outputs(logits(other), logits(model))


def test_low_rank_updates_are_cached_as_factors_and_dota_as_one_weight():
    linear = torch.nn.Linear(64, 96)
    for config, fused in ((LoRTAConfig(r=4), False), (DoTAConfig(r=4), True)):
        layer = NetworkLinear.from_linear(linear, config).eval()
        with torch.no_grad(), cached(layer):
            found = layer.update.cached_update
            assert (found.fused is not None) == fused
            assert [tuple(m.shape) for chain in found.maps for m in chain] == (
                [] if fused else [(64, 4), (4, 96)]
            )


def test_models_without_adapted_layers_are_refused():
    with pytest.raises(ValueError, match="no adapted layers"), cached(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="no adapted layers"):
        plans(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("method", METHODS)
def test_plans_name_every_adapted_layer_once(method, capsys):
    model = adapted("phi3", method)
    found = plans(model, tokens=16)
    layers = [m for m in model.modules() if isinstance(m, NetworkLayer)]
    whole = {layer.name.split(",")[0]: layer.layers for layer in found.layers}
    assert sum(whole.values()) == len(layers)
    for layer in found.layers:
        for training in (False, True):
            starts = layer.thresholds(training=training)
            chosen = [strategy for start, strategy in starts if start <= 16][-1]
            costs = layer.costs(16, training=training)
            assert costs[0][1].seconds <= dict(costs)[chosen].seconds <= costs[0][1].seconds * 1.05
    model.print_plan(16)
    assert capsys.readouterr().out.strip() == str(found).strip()


@pytest.mark.parametrize("tokens", [0, -1, 2.0, True, "many"])
def test_plans_need_a_positive_number_of_tokens(tokens):
    with pytest.raises(ValueError, match="tokens must be a positive int"):
        plans(adapted(), tokens)


@torch.no_grad()
@pytest.mark.parametrize("config", [DoTAConfig(r=2), LoRTAConfig(r=2)])
def test_a_compiled_layer_enters_and_leaves_the_cache(config):
    linear = torch.nn.Linear(48, 36, dtype=torch.float64)
    layer = NetworkLinear.from_linear(linear, config).eval()
    for parameter in layer.parameters():
        parameter.add_(0.01)
    x = torch.randn(5, 48, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    expected = layer(x)
    torch.testing.assert_close(compiled(x), expected)
    with cached(layer):
        torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_cores_that_are_changed_inside_count_at_once(method):
    model = adapted("llama", method)
    with cached(model):
        before = logits(model)
        for name, parameter in model.named_parameters():
            if f".{METHODS[method]().method}_" in name:
                parameter.mul_(1.5)
        inside = logits(model)
    assert_other_outputs(inside, before)
    assert_same_outputs(inside, logits(model))


def test_copies_compute_for_themselves():
    model = adapted()
    with cached(model):
        other = copy.deepcopy(model)
        assert not any(kept(other))
        assert all(kept(model))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_it_may_be_entered_under_autocast(method):
    model = adapted("llama", method)
    before = logits(model)
    with torch.autocast("cpu", torch.bfloat16), cached(model), torch.autocast("cpu", enabled=False):
        assert_same_outputs(logits(model), before)


@torch.no_grad()
def test_merged_layers_keep_nothing():
    model = adapted()
    model.merge_adapter()
    with cached(model):
        assert not any(kept(model))
