"""Adapters in use: swapped in place, counting more or less; and rates of their own for training."""

from __future__ import annotations

import peft
import pytest
import torch

import tnlib_adapters as ta
from tests.tnlib_adapters.adapters import adapted, alone, every_method, moved
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TARGETS, assert_same_outputs, inputs, logits, make

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def trained(method, seed, arch="llama", **kwargs):
    model, _ = adapted(method, arch, **kwargs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        moved(model)
    return model


@every_method
def test_a_swapped_adapter_is_the_saved_one(method, tmp_path):
    other, model = trained(method, 3), trained(method, 4)
    other.save_pretrained(tmp_path)
    places = {name: value.data_ptr() for name, value in model.named_parameters()}
    ta.hotswap(model, tmp_path)
    assert torch.equal(logits(model), logits(other))
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == places


@pytest.mark.parametrize("method", ["lotr", "dota", "rep"])
def test_swapping_compiles_nothing_again(method, tmp_path):
    other, model = trained(method, 3), trained(method, 4)
    other.save_pretrained(tmp_path)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    compiled, given = torch.compile(model.eval(), backend=backend), inputs(model)
    with torch.no_grad():
        compiled(**given)
        number = len(graphs)
        ta.hotswap(compiled, tmp_path)
        found = compiled(**given).logits
    assert len(graphs) == number > 0
    assert_same_outputs(found, logits(other))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"r": 8}, ValueError, "r is 8 in"),
        ({"alpha": 3.0}, ValueError, "alpha is 3.0 in"),
        ({"target_modules": ["q_proj"]}, ValueError, "have one declaration"),
        ({"rate_scaling": False}, ValueError, "rate_scaling"),
    ],
)
def test_other_adapters_are_not_swapped(fields, error, says, tmp_path):
    config = METHODS["lotr"](**({"target_modules": TARGETS["llama"]} | fields))
    peft.get_peft_model(make("llama"), config).save_pretrained(tmp_path)
    model = trained("lotr", 4)
    before = logits(model)
    with pytest.raises(error, match=says):
        ta.hotswap(model, tmp_path)
    assert torch.equal(logits(model), before)


def test_another_method_is_not_swapped(tmp_path):
    trained("lorta", 3).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"LoTRConfig.*LoRTAConfig"):
        ta.hotswap(trained("lotr", 4), tmp_path)
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        ta.hotswap(trained("lotr", 4), tmp_path / "nowhere")


@every_method
def test_adapters_count_as_much_as_is_said(method):
    """Nothing at zero, as they are at one, and half of the update at a half."""
    model, before = adapted(method, "llama", **alone(method))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        moved(model)
    after = logits(model)
    with ta.rescale_adapter_scale(model, 0):
        assert_same_outputs(logits(model), before)
    with ta.rescale_adapter_scale(model, 1.0):
        assert torch.equal(logits(model), after)
    if METHODS[method]().network(ta.Site("", 8, 8)).additive:
        layer = next(m for m in model.modules() if hasattr(m, "get_delta_weight"))
        whole = layer.get_delta_weight("default")
        with ta.rescale_adapter_scale(model, 0.5):
            assert_same_outputs(layer.get_delta_weight("default"), whole / 2)
    assert torch.equal(logits(model), after)


def test_bad_scales_are_refused():
    model = trained("lotr", 3)
    for bad, error in (("2", TypeError), (float("nan"), ValueError)):
        with pytest.raises(error), ta.rescale_adapter_scale(model, bad):
            pass
    with pytest.raises(ValueError, match="no adapter"), ta.rescale_adapter_scale(make("llama"), 1):
        pass


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dota"])
def test_cores_of_zeros_have_the_higher_rate(method):
    model, _ = adapted(method, "llama")
    optimizer = ta.create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0, betas=(0.5, 0.9)
    )
    slow, fast = optimizer.param_groups
    assert (slow["lr"], fast["lr"], fast["betas"]) == (1e-3, 4e-3, (0.5, 0.9))
    assert fast["params"]
    assert not any(parameter.any() for parameter in fast["params"])
    ids = [id(p) for group in (slow, fast) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_bad_rates_are_refused():
    model, _ = adapted("dota", "llama")
    with pytest.raises(ValueError, match="no trained core starts at zero"):
        ta.create_loraplus_optimizer(model, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=2.0)
    for fields in ({"lr": 0.0, "loraplus_lr_ratio": 2.0}, {"lr": 1.0, "loraplus_lr_ratio": 0.5}):
        with pytest.raises(ValueError, match=r"must be"):
            ta.create_loraplus_optimizer(model, torch.optim.SGD, **fields)


@every_method
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_trained_tokens(method, arch, tmp_path):
    """Embeddings of some tokens train beside, also where the output layer is tied to them."""
    tokens = {"trainable_token_indices": [3, 5]}
    model, before = adapted(method, arch, **tokens, **alone(method))
    assert torch.equal(logits(model), before)
    counted = ta.count(make(arch), model.peft_config["default"])
    assert counted.total == model.get_nb_trainable_parameters()[0]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        moved(model)
    after = logits(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make(arch), tmp_path)
    assert torch.equal(logits(again), after)


@every_method
@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
def test_modules_trained_in_full_stay_tied_where_asked(method, saved, tmp_path):
    fields = {"target_modules": ["q_proj"], "modules_to_save": [saved]} | alone(method)
    config = METHODS[method](ensure_weight_tying=True, **fields)
    model = peft.get_peft_model(make("qwen2"), config)
    inner = model.base_model.model
    trained = inner.model.embed_tokens.modules_to_save["default"].weight
    assert inner.lm_head.modules_to_save["default"].weight is trained
    with torch.random.fork_rng():
        torch.manual_seed(4)
        moved(model)
    after = logits(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make("qwen2"), tmp_path)
    assert torch.equal(logits(again), after)


def test_tied_weights_are_spoken_of():
    """Trained without the other, a warning says what to set; adapted with it is refused."""
    config = METHODS["lotr"](target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.warns(UserWarning, match="set ensure_weight_tying=True"):
        peft.get_peft_model(make("qwen2"), config)
    both = METHODS["lotr"](target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match="do not change embeddings"):
        peft.get_peft_model(make("qwen2"), both)


@pytest.mark.parametrize(
    ("method", "mine", "saved"),
    [
        ("lorta", {"alpha_pattern": {"q_proj": 9.0}}, {}),
        ("lorta", {"target_modules": ["q_proj"]}, {"target_modules": ["v_proj"]}),
        ("lorta", {"layers_to_transform": [0]}, {}),
        ("lotr", {"rank_pattern": {"q_proj": 2}}, {}),
    ],
)
def test_adapters_that_compute_otherwise_are_not_swapped(method, mine, saved, tmp_path):
    """Also where all cores have the same names and shapes."""
    targets = {"target_modules": ["q_proj", "v_proj"]}
    peft.get_peft_model(make("llama"), METHODS[method](**(targets | saved))).save_pretrained(
        tmp_path
    )
    model = peft.get_peft_model(make("llama"), METHODS[method](**(targets | mine)))
    with pytest.raises(ValueError, match="have one declaration"):
        ta.hotswap(model, tmp_path)


def test_merged_adapters_are_neither_swapped_nor_rescaled(tmp_path):
    """Their update would never be taken out of the base weight again."""
    model = trained("lotr", 3)
    model.save_pretrained(tmp_path)
    before = make("llama").state_dict()
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        ta.hotswap(model, tmp_path)
    with pytest.raises(ValueError, match="merged"), ta.rescale_adapter_scale(model, 0.5):
        pass
    model.unmerge_adapter()
    with ta.rescale_adapter_scale(model, 0.5):
        with pytest.raises(ValueError, match="rescaled"):
            model.merge_adapter()
        with pytest.raises(ValueError, match="rescaled"):
            model.add_weighted_adapter(["default"], [1.0], "new")
    model.add_weighted_adapter(["default"], [1.0], "new")
    for name, value in model.unload().state_dict().items():
        assert_same_outputs(value, before[name])
