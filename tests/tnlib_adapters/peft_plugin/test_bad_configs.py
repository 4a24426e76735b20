"""Wrong configurations and files, each with the message a user would understand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import peft
import pytest
import safetensors.torch
import torch

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import make, train
from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, NetworkConfig
from tnlib_adapters.layers.multipliers import MULTIPLIERS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CONFIGS = [
    (DoTAConfig, {"r": 0}, ValueError, "r must be at least 1, got 0"),
    (DoTAConfig, {"r": 2.5}, TypeError, "r must be an int, got 2.5 (float)"),
    (DoTAConfig, {"r": True}, TypeError, "r must be an int, got True (bool)"),
    (DoTAConfig, {"dims": 0}, ValueError, "dims must be at least 1"),
    (DoTAConfig, {"dims": "3"}, TypeError, "dims must be an int, got '3' (str)"),
    (DoTAConfig, {"dims": ([2, 3], [2])}, ValueError, "of equal length"),
    (DoTAConfig, {"dims": ([2, 3],)}, ValueError, "dims must be (row modes, column modes)"),
    (DoTAConfig, {"dims": (2, 3)}, TypeError, "dims must be two sequences of ints"),
    (DoTAConfig, {"dims": ([2, 0], [2, 2])}, ValueError, "every mode of dims must be at least 1"),
    (DoTAConfig, {"init_weights": "pissa"}, ValueError, "init_weights must be one of True, False"),
    (DoTAConfig, {"bias": "lora_only"}, ValueError, "bias must be one of 'none', 'all', 'dota_o"),
    (LoTRConfig, {"r": -1}, ValueError, "r must be at least 1, got -1"),
    (LoTRConfig, {"alpha": 0}, ValueError, "alpha must be finite and above 0, got 0"),
    (LoTRConfig, {"alpha": float("nan")}, ValueError, "alpha must be finite and above 0, got nan"),
    (LoTRConfig, {"alpha": "8"}, TypeError, "alpha must be a number, got '8' (str)"),
    (LoTRConfig, {"init": "kaiming"}, ValueError, "init must be one of 'scaled', 'normal'"),
    (LoTRConfig, {"init_weights": "random"}, ValueError, "init_weights must be one of True, False"),
    (LoRTAConfig, {"heads": "both"}, ValueError, "heads must be one of 'auto', 'output', 'input'"),
    (LoRTAConfig, {"num_heads": 0}, ValueError, "num_heads must be at least 1"),
    (LoRTAConfig, {"num_kv_heads": 2}, ValueError, "num_kv_heads is given without num_heads"),
    (LoRTAConfig, {"use_rslora": 1}, TypeError, "use_rslora must be True or False, got 1 (int)"),
    (LoRETTAConfig, {"variant": "lora"}, ValueError, "variant must be one of 'rep', 'adp'"),
    (LoRETTAConfig, {"tt_rank": 0}, ValueError, "tt_rank must be at least 1"),
    (LoRETTAConfig, {"bottleneck": 8.0}, TypeError, "bottleneck must be an int, got 8.0"),
    (LoRETTAConfig, {"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1"),
    (LoRETTAConfig, {"dropout": "a"}, TypeError, "dropout must be a number"),
    (LoRETTAConfig, {"init": "zero"}, ValueError, "init must be one of 'identity', 'gaussian'"),
    (LoRETTAConfig, {"shapes": [[8, 8]]}, ValueError, "shapes must be (modes down, modes up)"),
    (LoRETTAConfig, {"shapes": [8, 8]}, TypeError, "shapes must be two sequences of ints"),
    (LoRETTAConfig, {"shapes": [[8], []]}, ValueError, "shapes must be (modes down, modes up)"),
    (LoRETTAConfig, {"train_norms": None}, TypeError, "train_norms must be True or False"),
    (LoTRConfig, {"target_modules": 3}, TypeError, "must be a list of module names or a regular"),
    (LoTRConfig, {"target_modules": []}, ValueError, "target_modules is empty"),
    (LoTRConfig, {"target_modules": ["q", 1]}, TypeError, "target_modules must be a list of mod"),
    (LoTRConfig, {"exclude_modules": {1: 2}}, TypeError, "exclude_modules must be a list of mod"),
    (
        LoTRConfig,
        {"target_modules": "q", "layers_to_transform": 1},
        ValueError,
        "layers_to_transform cannot be used when target_modules is a str",
    ),
    (LoTRConfig, {"layers_pattern": "layers"}, ValueError, "give both"),
    (LoTRConfig, {"layers_to_transform": "0"}, TypeError, "must be an int or a list of ints"),
    (LoTRConfig, {"target_modules": "(q"}, ValueError, "target_modules='(q' is a str and so a reg"),
    (LoTRConfig, {"exclude_modules": "[q"}, ValueError, "is a str and so a regular expression"),
    (LoTRConfig, {"target_modules": ["q", ""]}, ValueError, "target_modules has an empty name"),
    (LoTRConfig, {"modules_to_save": [""]}, ValueError, "modules_to_save has an empty name"),
]


@pytest.mark.parametrize(("config", "fields", "error", "message"), CONFIGS)
def test_a_wrong_field(config, fields, error, message):
    with pytest.raises(error, match=re.escape(message)):
        config(**fields)


def test_a_configuration_that_is_no_method():
    with pytest.raises(TypeError, match="declare a subclass with a name"):
        NetworkConfig()


SITES = [
    (DoTAConfig(dims=([4, 4], [4, 4])), "dims=.* make a 16 x 16 matrix, but .*query is 48 x 48"),
    (
        LoRETTAConfig(shapes=([8, 8], [8, 8])),
        "query: shapes: the modes .* of down have the product 64, but 48 x 8 = 384 is needed",
    ),
    (
        LoRETTAConfig(shapes=([32, 4, 3], [8, 48])),
        "no partial product of .* may pass 48 without being a multiple of it",
    ),
    (
        LoRETTAConfig(bottleneck=12, shapes=([48, 4, 3], [3, 4, 48])),
        "shapes cut a width of 12 at 3 and at 4, and 3 does not divide 4",
    ),
    (LoRTAConfig(num_heads=5), "query: 5 heads do not divide the output width 48"),
    (LoTRConfig(target_modules=["embeddings.LayerNorm"]), "cannot adapt a LayerNorm"),
    (
        LoTRConfig(target_modules=["word_embeddings"]),
        "cannot adapt a Embedding: .* tokens of it in trainable_token_indices",
    ),
    (LoTRConfig(target_modules=["nothing"]), "'nothing'} not found in the base model"),
    (LoTRConfig(target_modules="query"), "it is a regular expression for whole names"),
]


@pytest.mark.parametrize(("config", "message"), SITES)
def test_a_configuration_that_does_not_fit_the_model(config, message):
    if config.target_modules is None:
        config.target_modules = {"query"}
    model = make("bert")
    with pytest.raises((TypeError, ValueError), match=message):
        peft.get_peft_model(model, config)
    assert list(model.state_dict()) == list(make("bert").state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_tensor_train_head_needs_a_head():
    with pytest.raises(ValueError, match=r"tt_head=True, but the model has no pooler.dense"):
        peft.get_peft_model(make("llama"), LoRETTAConfig(tt_head=True))


def test_an_unknown_model_needs_targets():
    with pytest.raises(ValueError, match="target_modules is not given, and no default is known"):
        peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoTRConfig())


# Ways in which a file can be wrong, and what is said about it.


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _header_cut(path):
    path.write_bytes(path.read_bytes()[:40])


def _garbage(path):
    path.write_bytes(b"\x00" * 200)


def _text(path):
    path.write_bytes((9).to_bytes(8, "little") + b"not json!")


def _edit(change):
    def edited(path):
        tensors = safetensors.torch.load_file(path)
        name = sorted(tensors)[0]
        change(tensors, name)
        safetensors.torch.save_file(tensors, path)

    return edited


def _shorten(tensors, name):
    tensors[name] = tensors[name][:1].clone()


def _forget(tensors, name):
    del tensors[name]


def _invent(tensors, name):
    tensors[name + "x"] = torch.zeros(2, 3)


FILES = {
    "cut": (_cut, ValueError, r"adapter_model.safetensors is cut off: tensor \S+ of shape \("),
    "header": (_header_cut, ValueError, "its header is cut off"),
    "garbage": (_garbage, ValueError, "is not a whole safetensors file"),
    "text": (_text, ValueError, "is not a whole safetensors file"),
    "shape": (
        _edit(_shorten),
        ValueError,
        r"tensor \S+ is \(.*\) in the file and \(.*\) in the model",
    ),
    "missing": (
        _edit(_forget),
        ValueError,
        r"has no tensor \S+ of shape \(.*\), and 1 are missing",
    ),
    "surplus": (_edit(_invent), ValueError, r"has a tensor \S+x of shape \(2, 3\) for which"),
}


@pytest.fixture(scope="module", params=["lorta", "rep"])
def folder(request, tmp_path_factory):
    """A saved adapter, of a method that shares cores and of one that does not."""
    path = tmp_path_factory.mktemp(request.param)
    model = peft.get_peft_model(make("bert"), METHODS[request.param](target_modules=["query"]))
    train(model, steps=1)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("damage", FILES)
def test_a_wrong_file_is_refused(damage, folder, tmp_path):
    change, error, message = FILES[damage]
    target = tmp_path / "adapter"
    shutil.copytree(folder, target)
    change(target / "adapter_model.safetensors")
    with pytest.raises(error, match=message):
        peft.PeftModel.from_pretrained(make("bert"), target)


def test_an_adapter_of_another_model_is_refused(folder):
    other = make("roberta")
    other.roberta.encoder.layer.append(make("roberta").roberta.encoder.layer[0])
    with pytest.raises(ValueError, match=r"saved for another model or configuration than this Ro"):
        peft.PeftModel.from_pretrained(other, folder)


def test_a_configuration_with_other_ranks_is_refused_with_both_shapes(folder, tmp_path):
    target = tmp_path / "adapter"
    shutil.copytree(folder, target)
    path = target / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["r" if "r" in fields else "tt_rank"] += 1
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"tensor \S+ is \(.* in the file and \(.* in the model"):
        peft.PeftModel.from_pretrained(make("bert"), target)


def test_a_save_that_fails_leaves_the_previous_files_whole(folder, tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    shutil.copytree(folder, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    model = peft.PeftModel.from_pretrained(make("bert"), target)

    def fails(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("tnlib_adapters.peft_plugin.fields.os.replace", fails)
    with pytest.raises(OSError, match="no space left"):
        next(iter(model.peft_config.values())).save_pretrained(target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_loaded_configuration_can_be_changed_for_a_new_adapter(tmp_path):
    model = peft.get_peft_model(make("llama"), LoTRConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    config = LoTRConfig.from_pretrained(tmp_path)
    config.r, config.init_weights, config.inference_mode = 6, True, False
    again = peft.get_peft_model(make("llama"), config)
    assert any(6 in p.shape for n, p in again.named_parameters() if "lotr" in n)


@pytest.mark.parametrize("layers", [1, 3])
def test_other_ways_to_load_refuse_another_model_too(layers, tmp_path):
    source = peft.get_peft_model(make("llama"), LoTRConfig(r=4, target_modules=["q_proj"]))
    source.save_pretrained(tmp_path)

    def other():
        model = make("llama")
        if layers == 3:
            model.model.layers.append(make("llama").model.layers[0])
        model.model.layers = model.model.layers[:layers]
        return model

    config = peft.PeftConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved for another model or configuration"):
        peft.PeftModel.from_pretrained(other(), tmp_path, config=config)
    adapted = peft.get_peft_model(other(), LoTRConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="saved for another model or configuration"):
        adapted.load_adapter(tmp_path, "default")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_configuration_that_does_not_fit_the_file_leaves_the_base_as_it_was(method, tmp_path):
    peft.get_peft_model(
        make("llama"), METHODS[method](target_modules=["q_proj"], **alone(method))
    ).save_pretrained(tmp_path)
    base = make("llama")
    before = {name: type(module) for name, module in base.named_modules()}
    for _ in range(2):
        other = METHODS[method](target_modules=["q_proj", "v_proj"], **alone(method))
        with pytest.raises(ValueError, match="saved for another model or configuration"):
            peft.PeftModel.from_pretrained(base, tmp_path, config=other)
        assert before == {name: type(module) for name, module in base.named_modules()}


@pytest.mark.filterwarnings("ignore:Adapter name:UserWarning")
@pytest.mark.parametrize("name", ["", "a.b", "keys", "update"])
def test_names_that_torch_has_no_module_for(name):
    base = make("llama")
    config = LoTRConfig(target_modules=["q_proj"])
    with pytest.raises(ValueError, match=f"adapter_name='{name}': torch has no module"):
        peft.get_peft_model(base, config, adapter_name=name)
    model = peft.get_peft_model(base, config)
    with pytest.raises(ValueError, match=f"adapter_name='{name}': torch has no module"):
        model.add_adapter(name, config)
    assert [*model.peft_config] == ["default"]


class Counts(torch.nn.Linear):
    """Counts its calls."""

    def __init__(self, *widths):
        super().__init__(*widths)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_adapting_calls_no_layer():
    model = torch.nn.ModuleDict({"a": Counts(8, 8)})
    peft.get_peft_model(model, LoTRConfig(target_modules=["a"]))
    assert model["a"].base_layer.calls == 0


NO_WEIGHTS = {
    "empty": (lambda: torch.nn.Linear(8, 0), ValueError, r"a: the layer is \(0, 8\) wide"),
    "lazy": (lambda: torch.nn.LazyLinear(8), ValueError, "a: this LazyLinear has no weight yet"),
    "float8": (
        lambda: torch.nn.Linear(8, 8, bias=False).to(torch.float8_e4m3fn),
        TypeError,
        "a: weights of torch.float8_e4m3fn are not supported",
    ),
}


@pytest.mark.filterwarnings(
    "ignore:Initializing zero-element tensors:UserWarning",
    "ignore:Lazy modules are a new feature:UserWarning",
)
@pytest.mark.parametrize(("make_layer", "error", "message"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_layers_without_values_to_adapt(make_layer, error, message):
    model = torch.nn.ModuleDict({"a": make_layer()})
    before = type(model["a"])
    with pytest.raises(error, match=message):
        peft.get_peft_model(model, LoTRConfig(target_modules=["a"]))
    assert type(model["a"]) is before


def test_modules_to_save_are_checked():
    with pytest.raises(TypeError, match="modules_to_save must be a list of names, got 'lm_head'"):
        LoTRConfig(modules_to_save="lm_head")
    with pytest.warns(
        UserWarning, match=r"modules_to_save entries that matched no module: \['lm_h"
    ):
        peft.get_peft_model(make("bert"), LoTRConfig(modules_to_save=["lm_head"]))


SAVE = """
import sys, peft, torch, tnlib_adapters
from tests.tnlib_adapters.models import make
from tnlib_adapters import LoTRConfig
model = peft.get_peft_model(make("bert"), LoTRConfig(r=600, target_modules=["query"]))
parameters = [p for p in model.parameters() if p.requires_grad]
for k in range(10_000):
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(k)
    model.save_pretrained(sys.argv[1])
    print(k, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 0.013, 0.037, 0.1])
def test_a_save_that_is_killed_leaves_a_whole_file(wait, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SAVE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        for _ in range(3):
            assert child.stdout.readline()
        time.sleep(wait)
        child.kill()
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    cores = [value for name, value in saved.items() if MULTIPLIERS not in name]
    assert len({float(value) for core in cores for value in core.unique()}) == 1
    assert peft.PeftModel.from_pretrained(make("bert"), tmp_path)
