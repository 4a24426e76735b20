"""Starts from gradients: nothing changes at first, and the first step goes further."""

from __future__ import annotations

import json

import peft
import pytest
import torch

from tests.tnlib_adapters.forms import FITTED, METHODS
from tests.tnlib_adapters.gradients.test_weight_gradients import batches
from tests.tnlib_adapters.models import TARGETS, logits, make, train
from tests.tolerances import assert_close
from tnlib_adapters import (
    Core,
    DoTAConfig,
    LoTRConfig,
    Network,
    WeightGradient,
    normal,
    start_from_gradients,
    weight_gradients,
    zeros,
)
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.fitting.outer_cores import outer_cores
from tnlib_adapters.networks.initializers import deviation

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CONFIGS = {form: METHODS[form] for form in FITTED} | {
    "dota, random": lambda **k: DoTAConfig(r=4, init_weights="random", **k),
    "lora": lambda **k: peft.LoraConfig(r=4, **k),
}


def adapted(method, **kwargs):
    torch.manual_seed(1)
    config = CONFIGS[method](target_modules=TARGETS["llama"], **kwargs)
    return peft.get_peft_model(make("llama"), config)


def updates(model):
    found = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    return [m.get_delta_weight("default").detach() for m in found]


@pytest.mark.parametrize("method", CONFIGS)
def test_the_update_starts_at_exactly_zero_and_is_saved(method, tmp_path):
    model = adapted(method)
    before = logits(model)
    first = {name: value.clone() for name, value in model.named_parameters()}
    found = start_from_gradients(model, batches())
    assert 0 < found.held <= 1
    assert len(found.weights) == len(updates(model))
    assert torch.equal(logits(model), before)
    assert all(not update.any() for update in updates(model))
    assert any(not torch.equal(value, first[name]) for name, value in model.named_parameters())
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    if method != "lora":
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert "from gradients" in config["described"]["start"]
        loaded.save_pretrained(tmp_path / "again")
        again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
        assert again["described"] == config["described"]


def rise(model, gradients):
    """How much of the gradients' energy the first step of the cores of zeros has."""
    layers = {n: m for n, m in model.get_base_model().named_modules() if n in gradients}
    loss = sum(
        (m.get_delta_weight("default") * gradients[n].leading.dense().float()).sum()
        for n, m in layers.items()
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    return sum(float(g.abs().sum()) for g in grads if g is not None)


@pytest.mark.parametrize("method", CONFIGS)
def test_the_first_step_goes_further_down_than_from_a_random_start(method):
    """Adam's first step lowers the loss by the rate times the sum of the gradients' sizes."""
    model = adapted(method)
    base = model.get_base_model()
    names = [n for n, m in base.named_modules() if hasattr(m, "get_delta_weight")]
    gradients = weight_gradients(base, batches(), names)
    before = rise(model, gradients)
    start_from_gradients(model, gradients)
    assert rise(model, gradients) > 1.5 * before


@pytest.mark.parametrize("method", [m for m in CONFIGS if m != "lora"])
def test_the_cores_are_as_large_as_they_start_otherwise(method):
    model = adapted(method)
    start_from_gradients(model, batches())
    for module in model.modules():
        if type(module).__name__ != "Update":
            continue
        for core in module.declared.cores:
            factor = (module._factors | (module.shared._factors if module.shared else {}))[core.key]
            size = float(module.stored[core.key].detach().square().mean().sqrt()) * factor
            assert size == pytest.approx(deviation(core.initializer), rel=1e-4)


def test_gradients_may_come_from_before():
    base = make("llama").eval()
    names = [f"model.layers.{k}.self_attn.q_proj" for k in range(2)]
    gradients = weight_gradients(base, batches(), names)
    held = []
    for given in (gradients, batches()):
        model = peft.get_peft_model(make("llama"), LoTRConfig(r=2, target_modules=["q_proj"]))
        held.append(start_from_gradients(model, given).held)
    assert held[0] == pytest.approx(held[1], rel=1e-4)
    model = peft.get_peft_model(make("llama"), LoTRConfig(r=2, target_modules=["v_proj"]))
    with pytest.raises(ValueError, match=r"no gradient for model.layers.0.self_attn.v_proj"):
        start_from_gradients(model, gradients)


def test_a_full_network_holds_all():
    model = peft.get_peft_model(make("llama"), LoTRConfig(r=48, target_modules=["q_proj"]))
    assert start_from_gradients(model, batches()).held == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", CONFIGS)
def test_weights_without_a_gradient_keep_their_usual_start(method):
    model = adapted(method)
    before, first = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    names = [n for n, m in model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")]
    found = weight_gradients(model.get_base_model(), batches(), names)
    *_, last = names
    zero = LowRankUpdate(*(torch.zeros_like(m) for m in vars(found[last].leading).values()))
    start_from_gradients(model, {**found, last: WeightGradient(zero, 0.0)})
    assert torch.equal(logits(model), before)
    own = {n: p for n, p in model.named_parameters() if f".{last}." in n}
    assert all(torch.equal(value, first[name]) for name, value in own.items())
    losses = train(model)
    assert losses[-1] < losses[0]


def test_what_cannot_start_so_is_refused():
    trained = adapted("lotr")
    train(trained)
    with pytest.raises(ValueError, match="the update is not zero; it was trained"):
        start_from_gradients(trained, batches())
    far = adapted("lora")
    last = [m for m in far.modules() if hasattr(m, "lora_B")][-1]
    torch.nn.init.ones_(last.lora_B["default"].weight)
    before = [value.clone() for value in far.parameters()]
    with pytest.raises(ValueError, match="the update is not zero"):
        start_from_gradients(far, batches())
    assert all(map(torch.equal, before, far.parameters()))
    gaussian = peft.get_peft_model(make("llama"), METHODS["rep"](init="gaussian"))
    with pytest.raises(ValueError, match='for LoRETTA init="identity"'):
        start_from_gradients(gaussian, batches())
    with pytest.raises(
        TypeError, match="batches is one batch, with input_ids, labels; give a list"
    ):
        start_from_gradients(adapted("lotr"), batches()[0])
    pretrained = peft.get_peft_model(make("llama"), DoTAConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match='set init_weights="random"'):
        start_from_gradients(pretrained, batches())
    series = peft.get_peft_model(make("llama"), METHODS["adp"]())
    with pytest.raises(TypeError, match="bottleneck adapter is not a change of weights"):
        start_from_gradients(series, batches())
    with pytest.raises(TypeError, match=r"must be a peft\.PeftModel"):
        start_from_gradients(make("llama"), batches())
    with pytest.raises(ValueError, match="give adapter_name"):
        start_from_gradients(adapted("lotr"), batches(), adapter_name="other")
    two = adapted("lotr")
    two.add_adapter("second", CONFIGS["lotr"](target_modules=TARGETS["llama"]))
    with pytest.raises(ValueError, match=r"'second' is not active.*model.set_adapter\('second'\)"):
        start_from_gradients(two, batches(), adapter_name="second")
    two.set_adapter("second")
    assert start_from_gradients(two, batches()).held > 0
    other = peft.get_peft_model(make("llama"), peft.VeraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="VeraConfig is not of tnlib_adapters"):
        start_from_gradients(other, batches())


def chain():
    """a - b - c - d, with c the core of zeros."""
    sizes = {"i": 6, "j": 5, "k": 4, "l": 7, "x": 3, "y": 2, "z": 4}
    cores = (
        Core("a", ("i", "x"), normal(0.1)),
        Core("b", ("x", "j", "y"), normal(2.0)),
        Core("c", ("y", "k", "z"), zeros),
        Core("d", ("z", "l"), normal(0.5)),
    )
    return Network(cores, sizes, ("i", "j"), ("k", "l"))


def test_outer_cores_are_orthonormal_towards_the_centre_and_span_the_same():
    network = chain()
    generator = torch.Generator().manual_seed(0)
    cores = {k: v.double() for k, v in network.initial(generator, zeros=False).items()}
    found = outer_cores(network, cores)
    assert not found["c"].any()

    def left(values):
        return torch.einsum("ix,xjy->ijy", values["a"], values["b"]).flatten(0, 1)

    for before, after in ((left(cores), left(found)), (cores["d"].mT, found["d"].mT)):
        basis = torch.linalg.qr(before)[0]
        assert_close(basis @ (basis.mT @ after), after, operations=100)
        gram = after.mT @ after
        assert_close(gram, gram[0, 0] * torch.eye(len(gram)), operations=100, size=gram[0, 0])
