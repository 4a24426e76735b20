"""Adapters of experts that are held as parameters: every class, method and implementation."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch

import tnlib_adapters as ta
from tests.tnlib_adapters.expert_models import (
    EXPERTS,
    OTHERS,
    VOCABULARY,
    WHOLE,
    expert_classes,
    experts_of,
    mixture,
    other_model,
    whole_model,
)
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import assert_same_outputs
from tests.tolerances import assert_close
from tnlib_adapters import quantization
from tnlib_adapters.base_model.expert_parameters import expert_parameters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
FORMS = [name for name in METHODS if name != "adp"]
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]
# One of every kind: plain, transposed with biases and interleaved, without a gate, with a norm.
SOME = {
    "Qwen3MoeExperts": "lotr",
    "DeepseekV3Experts": "lorta",
    "GptOssExperts": "lotr",
    "NemotronHExperts": "rep",
    "MuseSparkExperts": "dota",
    "AriaExperts": "ttlora",
}
TOKENS = torch.arange(10).reshape(2, 5) % VOCABULARY


def config(form, **fields):
    alone = {"train_norms": False} if form == "rep" else {}
    return METHODS[form](**({"target_parameters": "all-experts"} | alone | fields))


def adapted(name, form, implementation="grouped_mm", **fields):
    """An adapted model, and what the base gives."""
    model = mixture(name, implementation)
    with torch.no_grad():
        before = model(TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(model, config(form, **fields)).eval(), before


@torch.no_grad()
def moved(model):
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@torch.no_grad()
def outputs(model):
    return model.eval()(TOKENS)


def losses(model, steps=4):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    found = []
    for _ in range(steps):
        loss = -model.train()(TOKENS).log_softmax(-1)[..., 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def check_life(name, form, implementation, folder):
    """Start, gradients, training, saving, disabling, merging."""
    model, before = adapted(name, form, implementation)
    assert torch.equal(outputs(model), before)
    moved(model)
    after = outputs(model)
    model.train()(TOKENS).square().sum().backward()
    cores = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in cores.items() if p.grad is None or not p.grad.any()] == []
    model.zero_grad()
    with model.disable_adapter():
        assert torch.equal(outputs(model), before)
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(mixture(name, implementation), folder)
    assert torch.equal(outputs(again), after)
    found = losses(again := peft.get_peft_model(mixture(name, implementation), config(form)))
    assert found[-1] < found[0], found
    del again
    merged = model.merge_and_unload()
    assert not any("base_layer" in n or "update" in n for n, _ in merged.named_parameters())
    assert_same_outputs(outputs(merged), after)


def grid():
    for name in expert_classes():
        for form in FORMS:
            for implementation in IMPLEMENTATIONS:
                fast = SOME.get(name) == form or (
                    name == "Qwen3MoeExperts" and implementation[0] == "g"
                )
                marks = () if fast else pytest.mark.slow
                yield pytest.param(name, form, implementation, marks=marks)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize(("name", "form", "implementation"), [*grid()])
def test_life_of_an_adapter(name, form, implementation, tmp_path):
    check_life(name, form, implementation, tmp_path)


@pytest.mark.slow
def test_every_class_of_the_interface_is_built():
    assert len(expert_classes()) >= 60
    for name in expert_classes():
        assert experts_of(name).num_experts == EXPERTS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chosen", [None, [1, 4]])
def test_implementations_agree(form, chosen):
    fields = {"target_parameters": ["experts.up_proj", "experts.down_proj"], "experts": chosen}
    found = []
    for implementation in IMPLEMENTATIONS:
        model, _ = adapted("Qwen3MoeExperts", form, implementation, **fields)
        found.append(outputs(moved(model)))
    for other in found[1:]:
        assert_same_outputs(other, found[0])


@pytest.mark.parametrize("name", ["Qwen3MoeExperts", "GptOssExperts"])
def test_the_parts_of_a_fused_weight_are_its_rows(name):
    """Gate and up adapted apart leave each other's rows alone."""
    both = ("gate_proj", "up_proj")
    for part, other in (both, both[::-1]):
        model, _ = adapted(name, "lotr", target_parameters=[f"experts.{part}"])
        base = mixture(name, "grouped_mm").mlp["experts"].gate_up_proj
        merged = moved(model).merge_and_unload().mlp["experts"].gate_up_proj
        change = (merged - base).detach()
        known = expert_parameters(mixture(name, "grouped_mm"))
        for key, found in known.items():
            matrices = change.mT if found.transposed else change
            rows = matrices[:, found.rows]
            if key.endswith(f".{other}"):
                assert not rows.any()
            elif key.endswith(f".{part}"):
                assert rows.flatten(1).any(1).all()


@pytest.mark.parametrize("form", FORMS)
def test_only_chosen_experts_change(form):
    model, _ = adapted("Qwen3MoeExperts", form, experts=[0, 3])
    base = mixture("Qwen3MoeExperts", "grouped_mm").mlp["experts"].down_proj
    merged = moved(model).merge_and_unload().mlp["experts"].down_proj
    changed = (merged != base).flatten(1).any(1).tolist()
    assert changed == [True, False, False, True, False, False]


def test_experts_are_chosen_by_module():
    model, _ = adapted("Qwen3MoeExperts", "lotr", experts={"mlp.experts": [2]})
    cores = [p.shape for n, p in model.named_parameters() if n.endswith(".g")]
    assert {shape[0] for shape in cores} == {1}


@pytest.mark.parametrize("form", FORMS)
def test_unmerging_gives_the_base_back(form):
    model, before = adapted("Qwen3MoeExperts", form)
    after = outputs(moved(model))
    model.merge_adapter()
    assert_same_outputs(outputs(model), after)
    model.unmerge_adapter()
    assert_same_outputs(outputs(model), after)
    with model.disable_adapter():
        assert_same_outputs(outputs(model), before)


@pytest.mark.parametrize("form", FORMS)
def test_two_adapters_add_up_and_can_be_told_apart(form):
    model, before = adapted("Qwen3MoeExperts", form)
    first = outputs(moved(model))
    model.add_adapter("second", config(form, target_parameters=["experts.down_proj"]))
    model.set_adapter("second")
    assert torch.equal(outputs(model), before)
    second = outputs(moved(model))
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(outputs(model), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(outputs(model), second)
    assert torch.equal(outputs(model.unload()), before)


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("form", FORMS)
def test_whole_models(kind, form, tmp_path):
    """With linear layers beside, and a layer without experts in DeepSeek."""
    tokens = torch.arange(3, 14)[None]
    model = whole_model(kind)
    before = model(tokens).logits.detach()
    fields = {"target_modules": ["o_proj"], "target_parameters": "all-experts"}
    model = peft.get_peft_model(model, config(form, **fields)).eval()
    assert torch.equal(model(tokens).logits, before)
    after = moved(model)(tokens).logits.detach()
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(whole_model(kind), tmp_path).eval()
    assert torch.equal(again(tokens).logits, after)
    assert_same_outputs(model.merge_and_unload()(tokens).logits, after)


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_compiled_without_a_break(implementation):
    model, _ = adapted("Qwen3MoeExperts", "lotr", implementation)
    after = outputs(moved(model))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_outputs(outputs(compiled), after)
    model.train()
    expected = torch.autograd.grad(model(TOKENS).square().sum(), _cores(model))
    found = torch.autograd.grad(compiled(TOKENS).square().sum(), _cores(model))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1000)


def _cores(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast(implementation):
    """In bfloat16 activations are rounded, and the update is not zero there."""
    model, _ = adapted("Qwen3MoeExperts", "lotr", implementation)
    after = outputs(moved(model))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(TOKENS).float()
        found.sum().backward()
    off = torch.linalg.norm(found - after) / torch.linalg.norm(after)
    assert 0 < off < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in _cores(model))


def test_an_expert_that_no_token_visits_has_no_gradient():
    model, _ = adapted("Qwen3MoeExperts", "lotr")
    moved(model)
    experts = model.base_model.model.mlp["experts"]
    experts(torch.randn(4, 32), torch.tensor([[0, 2]] * 4), torch.ones(4, 2)).sum().backward()
    own = [p.grad for n, p in model.named_parameters() if n.endswith(".g")]
    for grad in own:
        assert [bool(g.any()) for g in grad] == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"target_parameters": ["gate"]}, ValueError, "matches no weight of experts; there are"),
        ({"target_parameters": ["head.weight"]}, ValueError, "not one of experts"),
        ({"target_parameters": "experts.down_proj"}, ValueError, "give a list of names"),
        ({"target_parameters": [3]}, TypeError, "target_parameters"),
        ({"experts": [6]}, ValueError, "the module has experts 0 to 5"),
        ({"experts": []}, ValueError, "the module has experts 0 to 5"),
        ({"experts": [0.5]}, TypeError, "experts must be a list of ints"),
        ({"target_parameters": None, "experts": [0]}, ValueError, "give both"),
        (
            {"target_parameters": ["experts.gate_up_proj", "experts.up_proj"]},
            ValueError,
            "which is a part of it",
        ),
    ],
)
def test_bad_targets_are_refused(fields, error, says):
    model = mixture("Qwen3MoeExperts", "grouped_mm")
    names = [n for n, _ in model.named_modules()]
    with pytest.raises(error, match=says):
        peft.get_peft_model(model, config("lotr", **fields))
    assert [n for n, _ in model.named_modules()] == names


def test_a_series_adapter_cannot_adapt_experts():
    model = mixture("Qwen3MoeExperts", "grouped_mm")
    fields = {"target_parameters": "all-experts", "train_norms": False}
    with pytest.raises(TypeError, match=r"cannot adapt experts.*variant='rep'"):
        peft.get_peft_model(model, METHODS["adp"](**fields))


def test_a_model_without_experts_says_so():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="has no experts that are held as parameters"):
        peft.get_peft_model(model, config("lotr"))


def test_an_unknown_use_of_an_adapted_weight_is_refused():
    model, _ = adapted("Qwen3MoeExperts", "lotr")
    base = model.base_model.model.mlp["experts"].base_layer
    base.config._experts_implementation = "eager"
    uses = [
        lambda self, *_: torch.add(self.down_proj, 1),
        lambda self, *_: self.down_proj[0, 0],
        lambda self, *_: torch.ones(6, 4, 32) @ self.down_proj,
    ]
    for use in uses:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(base).forward, "__wrapped__", use)
            with pytest.raises(TypeError, match="cannot be adapted"):
                model(TOKENS)


def test_a_copy_computes_with_its_own_weights():
    model, _ = adapted("Qwen3MoeExperts", "lotr")
    after = outputs(moved(model))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(outputs(twin), after)


def test_warnings_are_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted("Qwen3MoeExperts", "lotr")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("form", FORMS)
def test_classes_without_the_interface(kind, form):
    """All experts in one product, or one after another in loops of their own."""
    tokens = torch.arange(3, 14)[None]
    model = other_model(kind)
    before = model(tokens).logits.detach()
    model = peft.get_peft_model(model, config(form)).eval()
    assert torch.equal(model(tokens).logits, before)
    after = moved(model)(tokens).logits.detach()
    model(tokens).logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []
    merged = model.merge_and_unload()(tokens).logits
    assert_same_outputs(merged, after)
    assert not torch.equal(merged, before)


def test_plans_and_caches_are_of_linear_layers():
    """Beside them experts are computed as ever."""
    model, _ = adapted("Qwen3MoeExperts", "lotr")
    after = outputs(moved(model))
    with ta.cached(model):
        assert torch.equal(outputs(model), after)
    assert ta.plans(model).layers == ()


def test_experts_over_a_base_in_four_bits():
    """Linear layers in 4 bits, experts in full precision: adapters of both."""
    tokens = torch.arange(3, 14)[None]
    with pytest.warns(UserWarning, match="bare parameters, which are not quantised"):
        model = quantization.quantize_base(whole_model("Qwen3Moe"), progressbar=False)
    before = model(tokens).logits.detach()
    fields = {"target_modules": ["q_proj"], "target_parameters": "all-experts"}
    model = peft.get_peft_model(model, config("lotr", **fields)).eval()
    assert torch.equal(model(tokens).logits, before)
    after = moved(model)(tokens).logits.detach()
    merged = model.merge_and_unload(dtype=torch.float32)
    assert_same_outputs(merged(tokens).logits, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_dtypes_of_experts(dtype):
    """Half precision merges with its rounding reported; float8 is refused by name."""
    model = mixture("Qwen3MoeExperts", "eager")
    model.mlp["experts"].down_proj.data = model.mlp["experts"].down_proj.data.to(dtype)
    fields = {"target_parameters": ["experts.down_proj"]}
    if dtype.itemsize == 1:
        with pytest.raises(TypeError, match=r"down_proj: weights of torch\.float8"):
            peft.get_peft_model(model, config("lotr", **fields))
        return
    adapted = peft.get_peft_model(model, config("lotr", **fields))
    moved(adapted)
    with pytest.warns(UserWarning, match="merged into torch.float16: rounding"):
        adapted.merge_adapter()


def test_transformers_takes_adapters_of_experts(tmp_path):
    """Its own add_adapter and load_adapter, without PEFT's wrapper."""
    tokens = torch.arange(3, 14)[None]
    model = whole_model("Qwen3Moe")
    model.add_adapter(config("lotr"))
    after = moved(model).eval()(tokens).logits.detach()
    model.save_pretrained(tmp_path)
    again = whole_model("Qwen3Moe")
    again.load_adapter(tmp_path)
    assert torch.equal(again.eval()(tokens).logits, after)


def test_activation_checkpointing_changes_nothing():
    model = peft.get_peft_model(whole_model("Qwen3Moe"), config("lotr"))
    moved(model)
    tokens = torch.arange(3, 14)[None]
    expected = torch.autograd.grad(model.train()(tokens).logits.square().sum(), _cores(model))
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(model(tokens).logits.square().sum(), _cores(model))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1000)


def test_sizes_of_experts_by_pattern():
    """The names of weights of experts are matched too, and nothing is said to be unmatched."""
    pattern = {"experts.down_proj": 2, "o_proj": 3}
    fields = {"target_modules": ["q_proj", "o_proj"], "target_parameters": "all-experts"}
    chosen = config("lotr", rank_pattern=pattern, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = peft.get_peft_model(whole_model("Qwen3Moe"), chosen)
    assert chosen.rank_pattern == pattern
    sizes = {n.split(".")[-4]: p.shape[-1] for n, p in model.named_parameters() if n.endswith(".g")}
    assert sizes == {"q_proj": 4, "o_proj": 3, "gate_up_proj": 4, "down_proj": 2}
    assert ta.count(whole_model("Qwen3Moe"), chosen).total == model.get_nb_trainable_parameters()[0]


def test_experts_of_modules_that_are_not_named_stay_as_they_are():
    chosen = {"layers.1.mlp.experts": [0, 3]}
    model = peft.get_peft_model(whole_model("Qwen3Moe"), config("lotr", experts=chosen))
    names = [n for n, p in model.named_parameters() if n.endswith(".g")]
    assert names
    assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_part_and_the_whole_of_two_adapters_add_up(implementation):
    """Also where nothing that comes before is trained."""
    fields = {"target_parameters": ["experts.gate_proj"]}
    model, _ = adapted("Qwen3MoeExperts", "lotr", implementation, **fields)
    moved(model)
    model.add_adapter("second", config("lotr", target_parameters=["experts.gate_up_proj"]))
    model.set_adapter("second")
    moved(model)
    model.base_model.set_adapter(["default", "second"])
    model.eval()(TOKENS).sum().backward()
    both = outputs(model)
    model.merge_adapter()
    assert_same_outputs(outputs(model), both)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"experts": {"layers.9.mlp.experts": [0]}}, r"names 'layers\.9\.mlp\.experts'"),
        ({"layers_to_transform": [7]}, "leave none of them"),
        ({"exclude_modules": ["gate_up_proj", "down_proj"]}, "leave none of them"),
        ({"modules_to_save": ["mlp"]}, "train a module in full or adapt its weights"),
    ],
)
def test_targets_that_leave_nothing_or_twice_the_same_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        peft.get_peft_model(whole_model("Qwen3Moe"), config("lotr", **fields))
