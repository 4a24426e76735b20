"""Layers that an adapter would never train are known by the code of the modules around them."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import (
    MAKERS,
    assert_other_outputs,
    assert_same_outputs,
    make,
)
from tnlib_adapters import DoTAConfig, LoRTAConfig, LoTRConfig, count, find_sites
from tnlib_adapters.base_model.adaptable import unusable
from tnlib_adapters.base_model.linear_modules import original_modules

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def around(model):
    """Names of the layers to leave alone, with the classes that use their weights."""
    found = unusable(model)
    return {
        name: reason.removesuffix(" uses the weight by itself") for name, reason in found.items()
    }


class Reads(nn.Module):
    """Computes with the weights of some children in several ways, and calls the others."""

    def __init__(self):
        super().__init__()
        for name in ("called", "passed", "indexed", "asked", "helped", "unused"):
            setattr(self, name, nn.Linear(8, 8))
        self.many = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.inner = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x):
        if self.asked.weight.dtype == x.dtype and isinstance(self.asked.weight, torch.Tensor):
            x = self.called(self.asked(x))
        x = functional.linear(x, self.passed.weight) @ self.many[0].weight
        return self.helper(x + self.indexed.weight[0]) @ self.inner[0].weight.T

    def helper(self, x):
        return x @ self.helped.weight

    def report(self):
        return self.unused.weight.norm() + self.called.weight.norm()


class Inherits(Reads):
    """Reads what its base class reads."""


def test_weights_that_are_computed_with_are_found_and_questions_are_not():
    read = {"passed", "indexed", "helped", "many.0", "many.1", "inner.0"}
    for kind in (Reads, Inherits):
        assert around(kind()) == dict.fromkeys(read, kind.__name__)


def given(layer, x):
    """A function that is handed a layer and takes its weight."""
    return functional.linear(x, layer.weight)


def looked_at(layer):
    """A function that is handed a layer and asks what it is."""
    return layer.weight.dtype, layer.weight.shape


class Hides(nn.Module):
    """Computes with weights that it does not write as ``self.child.weight`` in ``forward``."""

    def __init__(self):
        super().__init__()
        for name in ("cast", "local", "first", "second", "handed", "asked", "built", "kept"):
            setattr(self, name, nn.Linear(8, 8))
        self.looped = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.pairs = nn.ModuleDict({"a": nn.Linear(8, 8)})
        self.inner = Corrects()

    def forward(this, x):
        x = functional.linear(x, this.cast.weight.type(torch.float32))
        layer = this.local
        x = functional.linear(x, layer.weight)
        for _, one in enumerate(this.looped):
            x = x @ one.weight
        x = sum(x @ one.weight.T for one in (this.first, this.second))
        for _, one in this.pairs.items():
            x = functional.linear(x, weight=one.weight)
        stacked = torch.cat([this.built.weight, getattr(this.kept, "weight")])  # noqa: B009
        x = given(this.handed, x) @ stacked.T
        return this.inner.correct(this.asked(x), looked_at(this.asked))


class Corrects(nn.Module):
    """Has a method of its own that an outer module calls."""

    def __init__(self):
        super().__init__()
        self.read, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def correct(self, x, asked):
        return functional.linear(x, self.read.weight)

    def forward(self, x):
        return self.other(x)


def test_weights_are_followed_through_names_loops_functions_and_methods():
    found = {"cast", "local", "looped.0", "looped.1", "first", "second", "pairs.a", "handed"}
    found |= {"built", "kept"}
    assert around(Hides()) == dict.fromkeys(found, "Hides") | {"inner.read": "Corrects"}


class Looks(nn.Module):
    """Calls its layer, and looks at the weight in ways that train nothing."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x):
        x = x.to(self.a.weight).type_as(self.a.weight).to(self.a.weight.data.dtype)
        x = x + self.a.weight.new_zeros(1)
        if self.training:
            self.a.weight.data.clamp_(-1.0, 1.0)
        self.penalty = self.a.weight.pow(2).sum()
        assert (self.a.weight == self.a.weight).all()
        return self.a(x)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_layers_that_are_called_and_looked_at_are_adapted(method):
    assert around(Looks()) == {}
    model = peft.get_peft_model(Looks(), METHODS[method](target_modules=["a"], **alone(method)))
    assert model.targeted_module_names == ["a"]


class Twice(nn.Module):
    """Has one layer at two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again = self.a
        self.many = nn.ModuleList([self.b])

    def forward(self, x):
        return self.again(self.many[0](x))


def test_a_layer_at_two_places_is_left_alone():
    with pytest.raises(ValueError, match="a cannot be adapted: the layer is also again"):
        peft.get_peft_model(Twice(), LoTRConfig(target_modules=["a"]))
    shared = nn.ModuleList([Looks()] * 2)
    assert around(shared) == {}


@pytest.mark.parametrize(
    ("config", "kind", "read"),
    [
        (
            hf.LongcatFlashConfig(
                vocab_size=64,
                hidden_size=32,
                num_layers=1,
                num_attention_heads=2,
                n_routed_experts=4,
                zero_expert_num=2,
                moe_topk=2,
                ffn_hidden_size=32,
                expert_ffn_hidden_size=16,
            ),
            hf.LongcatFlashModel,
            {"classifier"},
        ),
        (
            hf.Gemma3nTextConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=5,
                intermediate_size=[32] * 5,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                hidden_size_per_layer_input=8,
                laurel_rank=4,
                num_kv_shared_layers=0,
                activation_sparsity_pattern=[0.0] * 5,
                layer_types=["full_attention"] * 5,
            ),
            hf.Gemma3nTextModel,
            {"correction_coefs"},
        ),
    ],
)
def test_casts_and_methods_of_submodules_in_real_models(config, kind, read):
    with torch.device("meta"):
        model = kind(config)
    assert {name.rpartition(".")[2] for name in around(model)} == read


def test_names_are_those_of_the_whole_model():
    model = nn.ModuleDict({"a": Reads(), "b": nn.ModuleList([nn.Linear(8, 8), Inherits()])})
    found = around(model)
    assert {name.split(".")[0] for name in found} == {"a", "b"}
    assert all(model.get_submodule(name).in_features == 8 for name in found)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_layer_of_the_usual_models_is_left_out(name):
    model = make(name)
    linear = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert linear == set(find_sites(model))


@pytest.mark.parametrize(
    ("config", "kind", "read"),
    [
        (
            hf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64),
            hf.MambaForCausalLM,
            {"x_proj", "dt_proj", "out_proj"},
        ),
        (
            hf.Mamba2Config(
                hidden_size=32, num_heads=8, head_dim=8, num_hidden_layers=1, vocab_size=64
            ),
            hf.Mamba2ForCausalLM,
            {"out_proj"},
        ),
        (hf.SiglipVisionConfig(num_hidden_layers=1), hf.SiglipVisionModel, {"out_proj"}),
    ],
)
def test_fused_kernels_and_attention_of_torch(config, kind, read):
    """Whatever this machine would run: Mamba's kernels are for GPUs."""
    with torch.device("meta"):
        model = kind(config)
    names = {name for name in around(model) if isinstance(model.get_submodule(name), nn.Linear)}
    assert {name.rpartition(".")[2] for name in names} == read
    assert not names & set(find_sites(model))


def mamba():
    torch.manual_seed(0)
    return hf.MambaForCausalLM(hf.MambaConfig(hidden_size=48, num_hidden_layers=2, vocab_size=64))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_entry_that_can_train_nowhere_is_refused(method):
    config = METHODS[method](target_modules=["in_proj", "out_proj"])
    model = mamba()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=r"MambaMixer uses the weight by itself.*'out_proj'"):
        peft.get_peft_model(model, config)
    assert before == [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=r"out_proj cannot be adapted: MambaMixer"):
        peft.get_peft_model(mamba(), METHODS[method](target_modules=["out_proj"]))
    with pytest.raises(ValueError, match=r"out_proj cannot be adapted: MambaMixer"):
        count(mamba(), METHODS[method](target_modules=["out_proj"]))


def test_all_linear_leaves_out_what_would_not_train_and_says_so():
    with pytest.warns(UserWarning, match=r"not adapted: .*MambaMixer"):
        model = peft.get_peft_model(mamba(), DoTAConfig(target_modules="all-linear"))
    assert {name.rpartition(".")[2] for name in model.targeted_module_names} == {"in_proj"}
    with pytest.warns(UserWarning, match=r"not adapted: .*MambaMixer"):
        counted = count(mamba(), DoTAConfig(target_modules="all-linear"))
    assert list(counted.targets) == model.targeted_module_names
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.total == trained


@pytest.mark.parametrize("method", ["dota", "lotr"])
def test_torchs_encoder_uses_adapted_layers_in_evaluation_too(method):
    """In evaluation it computes with its layers' weights, unless one of them has a hook."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, dropout=0.0)
    config = METHODS[method](target_modules=["linear1", "linear2"], init_weights=False)
    model = peft.get_peft_model(encoder, config).eval()
    x = torch.randn(2, 5, 48)
    recorded = model(x.clone().requires_grad_())
    with torch.no_grad():
        assert_same_outputs(model(x), recorded.detach())
        with model.disable_adapter():
            assert_other_outputs(model(x), recorded.detach())


class Pair(nn.Module):
    """Called linear, and gives its bias apart, as layers of large-scale training code do."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6, 8)), None
        self.in_features, self.out_features = 8, 6

    def forward(self, x):
        return x @ self.weight.T, self.bias


class PairLinear(Pair):
    """Such a layer by its name."""


class WideLinear(Pair):
    """Gives more than it says."""

    def forward(self, x):
        return torch.cat([x, x], -1)


class FussyLinear(Pair):
    """Needs a second argument, which a call in the model has."""

    def forward(self, x, scale):
        return x @ self.weight.T * scale


@pytest.mark.parametrize(("kind", "found"), [(PairLinear, "tuple"), (WideLinear, r"\(1, 16\)")])
def test_layers_that_are_linear_by_name_only_are_refused(kind, found):
    with pytest.raises(TypeError, match=rf"a: cannot adapt a {kind.__name__}: .* it gives {found}"):
        peft.get_peft_model(nn.ModuleDict({"a": kind()}), LoTRConfig(target_modules=["a"]))


def test_layers_that_cannot_be_tried_are_believed():
    model = peft.get_peft_model(
        nn.ModuleDict({"a": FussyLinear()}), LoTRConfig(target_modules=["a"], init_weights=False)
    )
    x = torch.randn(2, 8)
    layer = model.base_model.model["a"]
    delta = layer.get_delta_weight("default")
    assert_same_outputs(layer(x, 2.0), 2 * x @ torch.ones(8, 6) + x @ delta.T)


def test_modules_that_are_trained_in_full_are_no_further_sites():
    """Neither the copies nor the originals of modules_to_save change what a method sees."""
    config = {"target_modules": ["gate_proj", "down_proj"], "r": 4}
    plain = dict(find_sites(make("llama")))
    saved = {"modules_to_save": ["model.layers.1.mlp.up_proj", "lm_head"]}
    model = peft.get_peft_model(make("llama"), LoRTAConfig(**config, **saved))
    assert find_sites(model.get_base_model()) == plain
    names = [name for name, _ in original_modules(model.get_base_model())]
    assert not any("original_module" in name or "modules_to_save" in name for name in names)
    model.add_adapter("second", LoRTAConfig(**config, **saved))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if "corestore" in n}
    first = {n.replace(".default.", "."): s for n, s in shapes.items() if ".default." in n}
    second = {n.replace(".second.", "."): s for n, s in shapes.items() if ".second." in n}
    assert first == second
