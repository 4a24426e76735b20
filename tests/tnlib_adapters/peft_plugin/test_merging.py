"""What PEFT promises of merging, for every method that is an update of a weight."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import torch

from tests.tnlib_adapters.adapters import adapted, alone, by_structure, parts, second, two_adapters
from tests.tnlib_adapters.forms import MERGEABLE
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, logits, make, train
from tests.tolerances import assert_close
from tnlib_adapters import LoRETTAConfig
from tnlib_adapters.peft_plugin.layer import NetworkLayer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
every_mergeable = by_structure(MERGEABLE)
# PEFT's unmerge_adapter calls every layer, and one that was not merged says so.
quiet_unmerge = pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")


@every_mergeable
def test_two_active_adapters_add_up_and_merge(method):
    model, outputs, before = two_adapters(method)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "base_layer" in n}
    deltas = dict.fromkeys(weights, 0)
    for key, layer in model.named_modules():
        if isinstance(layer, NetworkLayer):
            held = [layer.get_delta_weight(name).detach() for name in layer.held]
            deltas[f"{key}.base_layer.weight"] = sum(held)
    model.merge_adapter(["default", "second"])
    assert_same_outputs(logits(model), both)
    for n, parameter in model.named_parameters():
        if n in weights:
            expected = weights[n] + deltas[n]
            assert_close(parameter, expected, operations=4)
    model.unmerge_adapter()
    assert_same_outputs(logits(model), both)
    with model.disable_adapter():
        assert_same_outputs(logits(model), before)
    merged = model.merge_and_unload(adapter_names=["second"])
    assert_same_outputs(logits(merged), outputs["second"])


@every_mergeable
def test_an_inactive_adapter_is_merged_by_name(method):
    model, outputs, before = two_adapters(method, target_modules=TARGETS["llama"])
    model.merge_adapter(adapter_names=["default"])
    assert_same_outputs(logits(model), outputs["default"])
    model.unmerge_adapter()
    assert_same_outputs(logits(model), outputs["second"])
    with model.disable_adapter():
        assert_same_outputs(logits(model), before)


@every_mergeable
def test_merging_leaves_no_record_of_an_adapter_that_is_deleted(method):
    model, _ = adapted(method, "llama", torch.bfloat16, **alone(method))
    train(model)
    with pytest.warns(UserWarning, match="rounding"):
        model.merge_adapter()
    model.unmerge_adapter()
    model.add_adapter("second", second(method))
    model.set_adapter("second")
    model.delete_adapter("default")
    for part in parts(model):
        for value in vars(part).values():
            assert not (isinstance(value, dict | list | set | tuple) and "default" in value)


@every_mergeable
def test_a_merged_adapter_is_disabled_too(method):
    model, before = adapted(method, "llama")
    train(model)
    trained = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert_same_outputs(logits(model), before)
    assert_same_outputs(logits(model), trained)


@every_mergeable
def test_safe_merge_and_unload(method):
    model, _ = adapted(method, "gpt2")
    train(model)
    expected = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert_same_outputs(logits(merged), expected)
    assert not parts(merged)
    assert not hasattr(merged, "corestore")


@every_mergeable
def test_safe_merge_refuses_nan_in_any_layer_and_changes_nothing(method):
    model, before = adapted(method, "bert")
    cores = [p for n, p in model.named_parameters() if f"{model.base_model.prefix}" in n]
    with torch.no_grad():
        cores[-1].fill_(torch.nan)
    with pytest.raises(ValueError, match="nothing was merged"):
        model.merge_adapter(safe_merge=True)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "kwargs", [{"variant": "adp"}, {"tt_head": True}], ids=["adp", "rep with tt_head"]
)
def test_what_is_no_update_of_a_weight_is_not_merged(kwargs):
    model = make("bert")
    before = logits(model)
    config = LoRETTAConfig(target_modules=["query", "attention.output.dense"], **kwargs)
    model = peft.get_peft_model(model, config)
    train(model)
    trained, state = logits(model), copy.deepcopy(model.state_dict())
    for merge in (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.merge_adapter(safe_merge=True),
        lambda: model.merge_adapter(adapter_names=["default"]),
    ):
        with pytest.raises(TypeError, match=r"cannot be merged.*variant='rep' without tt_head"):
            merge()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_mergeable
def test_merging_into_half_precision_says_what_rounding_takes(method, dtype):
    # Norms in float16 are beyond Adam, whose eps is zero there.
    model, _ = adapted(method, "llama", dtype, **alone(method))
    losses = train(model, lr=2e-2)
    assert losses[-1] < losses[0]
    lost = []
    for layer in parts(model):
        if isinstance(layer, NetworkLayer):
            delta = layer.get_delta_weight("default").detach().double()
            exact = layer.base_layer.weight.detach().double() + delta
            lost.append(float((exact.to(dtype).double() - exact).norm() / delta.norm()))
    lost.sort()
    told = rf"merged into {dtype}: rounding .* errs by (.*)% of the update in the median .*by (.*)%"
    with pytest.warns(UserWarning, match=told) as record:
        merged = model.merge_and_unload()
    (message,) = (str(w.message) for w in record if "merged into" in str(w.message))
    numbers = [float(number) / 100 for number in re.findall(r"([\d.]+)%", message)]
    # Told to a tenth of a per cent.
    assert numbers[:2] == pytest.approx([lost[len(lost) // 2], lost[-1]], abs=6e-4)
    assert next(merged.parameters()).dtype == dtype


@quiet_unmerge
@every_mergeable
def test_the_rounding_of_an_earlier_merge_is_not_reported_again(method):
    model, _ = adapted(method, "llama", torch.bfloat16, **alone(method))
    train(model, lr=2e-2)
    model.add_adapter("second", second(method))
    model.set_adapter("second")
    train(model, steps=1, lr=1e-4)
    reports = []
    for names in (["second"], ["default"], ["second"]):
        with pytest.warns(UserWarning, match="rounding") as record:
            model.merge_adapter(names)
        reports.append(str(record[0].message))
        model.unmerge_adapter()
        model.base_model.set_adapter(names)
    assert reports[1].split("errs")[1] != reports[2].split("errs")[1]
