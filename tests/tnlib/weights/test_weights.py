"""Weights are read as they were written, from whatever has them; what is hurt is named."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from tnlib.weights.difference import difference
from tnlib.weights.opening import open_weights

RNG = np.random.default_rng(0)


def array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def sharded(folder, tensors, shards=2):
    """A folder of shards with an index, as transformers writes it."""
    folder.mkdir(exist_ok=True)
    names = [*tensors]
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        own = {name: tensors[name] for name in names[k::shards]}
        save_file(own, folder / file)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"],
)
def test_numbers_of_every_format_are_those_of_torch(tmp_path, dtype):
    kind = getattr(torch, dtype)
    values = torch.randn(5, 7, dtype=torch.complex64 if kind.is_complex else torch.float32)
    values = values.to(kind)
    save_torch({"w": values}, tmp_path / "w.safetensors")
    stored = open_weights(tmp_path / "w.safetensors").tensors["w"]
    assert (stored.shape, stored.dtype) == ((5, 7), dtype)
    wide = values if kind.itemsize >= 4 else values.float()
    np.testing.assert_array_equal(stored.read(), wide.numpy())
    in_memory = open_weights({"w": values}).tensors["w"]
    np.testing.assert_array_equal(in_memory.read(), wide.numpy())


@pytest.mark.parametrize(
    ("ending", "scale"),
    [
        ("weight_scale", np.float32([0.5])),
        ("weight_scale", np.array(0.5, np.float32)),
        ("weight_scale", np.float32(RNG.uniform(0.5, 2, (6, 1)))),
        ("weight_scale", np.float32(RNG.uniform(0.5, 2, 6))),
        ("weight_scale_inv", np.float32(RNG.uniform(0.5, 2, (2, 3)))),
    ],
)
def test_8_bit_numbers_have_their_scale(tmp_path, ending, scale):
    codes = array(6, 10).astype(ml_dtypes.float8_e4m3fn)
    stored = {"q.weight": torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)}
    save_torch(stored | {f"q.{ending}": torch.from_numpy(scale)}, tmp_path / "w.safetensors")
    weights = open_weights(tmp_path / "w.safetensors")
    assert [*weights.tensors] == ["q.weight"]
    full = scale
    if scale.shape == (2, 3):
        full = np.kron(scale, np.ones((4, 4), np.float32))[:6, :10]
    elif scale.shape == (6,):
        full = scale[:, None]
    expected = codes.astype(np.float32) * full
    np.testing.assert_array_equal(weights.tensors["q.weight"].read(), expected)


def test_shards_are_one_source_in_natural_order(tmp_path):
    tensors = {f"layers.{k}.weight": array(3, k + 1) for k in range(12)}
    weights = open_weights(sharded(tmp_path / "m", tensors))
    assert [*weights.tensors] == [*tensors]
    for name, value in tensors.items():
        np.testing.assert_array_equal(weights.tensors[name].read(), value)
    assert weights.fingerprint() == open_weights(tmp_path / "m").fingerprint()


def test_another_number_is_another_fingerprint(tmp_path):
    tensors = {"a": array(4, 4), "b": array(5)}
    first = open_weights(sharded(tmp_path / "one", tensors)).fingerprint()
    tensors["b"] = tensors["b"].copy()
    tensors["b"][2] += 1
    assert open_weights(sharded(tmp_path / "two", tensors)).fingerprint() != first
    assert open_weights(tensors).fingerprint() != open_weights({"a": array(4, 4)}).fingerprint()


def test_a_shard_that_is_cut_off_hurts_its_last_tensors_only(tmp_path):
    folder = sharded(tmp_path / "m", {f"layers.{k}.weight": array(4, 4) for k in range(4)})
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-20])
    weights = open_weights(folder)
    assert [*weights.tensors] == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    assert "cut off" in weights.problems["layers.3.weight"]
    shard.write_bytes(b"\x00")
    assert {*open_weights(folder).problems} == {"layers.1.weight", "layers.3.weight"}
    shard.unlink()
    assert "is missing" in open_weights(folder).problems["layers.1.weight"]


def test_an_index_that_does_not_fit_is_told(tmp_path):
    folder = sharded(tmp_path / "m", {"a": array(2, 2), "b": array(2, 2)})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["c"] = content["weight_map"].pop("a")
    index.write_text(json.dumps(content))
    weights = open_weights(folder)
    assert "has no such tensor" in weights.problems["c"]
    assert "does not name" in weights.notes[0]
    assert "a" in weights.tensors
    content["weight_map"]["c"] = "../m/model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside its folder"):
        open_weights(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match="holds no fields"):
        open_weights(folder)


def test_codes_of_quantised_checkpoints_are_problems(tmp_path):
    save_file(
        {"a.weight": array(2, 2), "b.weight": np.ones((4, 1), np.int8), "ids": np.arange(3)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    weights = open_weights(tmp_path)
    assert [*weights.tensors] == ["a.weight"]
    assert "gptq" in weights.problems["b.weight"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing.safetensors", "there is no"),
        (lambda p: p / "no" / "folder", "there is no"),
        (lambda p: _file(p / "model.bin", b"\x80"), "pickled"),
        (lambda p: _file(p / "x.pt", b"\x80").parent, "pickled"),
        (lambda p: _file(p / "x.gguf", b"GGUF").parent, "quantised"),
        (lambda p: _file(p / "notes.txt", b"").parent, "has no safetensors files"),
        (lambda p: _file(p / "x.safetensors", b"12345"), "no whole safetensors file|not a whole"),
        (lambda p: "", "is empty"),
        (lambda p: 3, "must be a path"),
        (lambda p: {"a": [1.0]}, "must be an array"),
        (lambda p: {1: np.ones(2)}, "names must be strings"),
        (lambda p: {"a": np.arange(3)}, "no floating-point tensor"),
        (lambda p: torch.nn.Linear(2, 2, device="meta"), "no floating-point tensor"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, make, message):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        open_weights(make(tmp_path))


def _file(path, content):
    path.write_bytes(content)
    return path


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    sharded(tmp_path, {"a.weight": array(2, 3)}, shards=1)

    def download(name, allow_patterns):
        assert (name, "*.safetensors" in allow_patterns) == ("someone/model", True)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert [*open_weights("someone/model").tensors] == ["a.weight"]

    def fails(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(FileNotFoundError, match="no network"):
        open_weights("someone/else")


def test_tied_weights_of_a_module_are_one():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    weights = open_weights(model)
    assert "b.weight" not in weights.tensors
    assert weights.notes == ("b.weight is a.weight",)


def test_a_difference_is_of_what_both_have(tmp_path):
    base = {"a": array(3, 3), "b": array(4), "c": array(2, 2), "gone": array(2)}
    new = {"a": base["a"] + 1, "b": base["b"], "c": array(3, 2), "extra": array(1)}
    changed = difference(open_weights(new), open_weights(base))
    assert changed.is_update
    assert {*changed.tensors} == {"a", "b"}
    np.testing.assert_array_equal(changed.tensors["a"].read(), new["a"] - base["a"])
    assert "(3, 2)" in changed.problems["c"]
    assert "fine-tuned model only" in changed.problems["extra"]
    assert "gone" in changed.notes[-1]
    np.testing.assert_array_equal(base["a"], array(3, 3))
    with pytest.raises(ValueError, match="no tensor of one name"):
        difference(open_weights({"x": array(2)}), open_weights(base))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_is_the_update_that_peft_adds(tmp_path, rslora):
    import peft

    base = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(6, 4), "v": torch.nn.Linear(6, 4)})
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        rank_pattern={"v": 3},
        alpha_pattern={"v": 5},
        target_modules=["q_proj", "v"],
        init_lora_weights=False,
        use_rslora=rslora,
    )
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path)
    update = open_weights(tmp_path)
    merged = adapted.merge_and_unload().state_dict()
    assert {*update.tensors} == {"q_proj.weight", "v.weight"}
    for name, tensor in update.tensors.items():
        expected = (merged[name] - before[name]).numpy()
        np.testing.assert_allclose(tensor.read(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="give the base model"):
        difference(open_weights(merged), update)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(tmp_path, fields, message):
    save_file(
        {"base_model.model.q.lora_A.weight": array(2, 3)}, tmp_path / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, **fields}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        open_weights(tmp_path)
