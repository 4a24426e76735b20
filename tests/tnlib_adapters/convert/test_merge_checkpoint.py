"""Adapters merged into checkpoints on disk."""

from __future__ import annotations

import json
import math
import shutil

import peft
import pytest
import safetensors.torch
import torch
import transformers as hf

from tests.tnlib_adapters.adapters import moved
from tests.tnlib_adapters.forms import MERGEABLE, METHODS
from tests.tnlib_adapters.models import (
    MAKERS,
    TARGETS,
    assert_same_outputs,
    logits,
    make,
    precise,
    tokens,
)
from tnlib_adapters import LoTRConfig
from tnlib_adapters.convert.merge import merge
from tnlib_adapters.convert.write_lora import to_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
INDEX = "model.safetensors.index.json"
# PEFT says so where the output embedding is adapted.
embeddings_saved = pytest.mark.filterwarnings("ignore:Setting `save_embedding:UserWarning")


def tensors(folder):
    """All tensors of a checkpoint by name, with the shard that each is in."""
    return {
        name: (path.name, value)
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in safetensors.torch.load_file(path).items()
    }


def saved(folder, base, method, name, *, shards="60KB", **kwargs):
    """A checkpoint in ``base`` and an adapter in ``adapter``, and the model with both."""
    base.save_pretrained(folder / "base", max_shard_size=shards)
    model = type(base).from_pretrained(folder / "base", dtype=base.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = METHODS[method](**({"target_modules": TARGETS[name]} | kwargs))
        model = peft.get_peft_model(model, config)
        # Little: ten times as far, attention turns hard and amplifies roundings by thousands.
        moved(model, 0.01)
    model.save_pretrained(folder / "adapter")
    return model


def loaded(model, folder):
    """The merged checkpoint, in which transformers found everything in its place."""
    found, info = type(model.get_base_model()).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return found


@pytest.mark.parametrize(
    ("method", "name"),
    [("lotr", name) for name in sorted(MAKERS)]
    + [(method, name) for method in MERGEABLE[:1] + MERGEABLE[2:] for name in ("bert", "gpt2")],
)
def test_the_merged_checkpoint_gives_the_adapted_models_outputs(method, name, tmp_path):
    model = saved(tmp_path, make(name, precise(name)), method, name)
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(model, tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(model))
    old, new = tensors(tmp_path / "base"), tensors(tmp_path / "merged")
    assert len({shard for shard, _ in old.values()}) > 1
    assert {name: shard for name, (shard, _) in old.items()} == {
        name: shard for name, (shard, _) in new.items()
    }
    index = [json.loads((tmp_path / f / INDEX).read_text()) for f in ("base", "merged")]
    assert index[0]["weight_map"] == index[1]["weight_map"]
    assert index[0]["metadata"]["total_size"] == index[1]["metadata"]["total_size"]
    changed = {name for name in old if not torch.equal(old[name][1], new[name][1])}
    assert len(changed) == report.n_weights + len(report.replaced)
    assert report.added == ()
    assert report.worst == 0
    configs = [(tmp_path / f / "config.json").read_text() for f in ("base", "merged")]
    assert json.loads(configs[0]) == json.loads(configs[1])


def test_one_file_stays_one_file_with_its_companions(tmp_path):
    model = saved(tmp_path, make("llama"), "lotr", "llama", shards="1GB")
    base = tmp_path / "base"
    for name in ("tokenizer.json", "merges.txt", "pytorch_model.bin", "extra.safetensors"):
        (base / name).write_text(name)
    (base / "generation_config.json").write_text('{"max_new_tokens": 7}')
    merge(tmp_path / "adapter", tmp_path / "merged")
    kept = {"config.json", "generation_config.json", "merges.txt", "tokenizer.json"}
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {*kept, "model.safetensors"}
    for name in kept - {"config.json"}:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    merged = loaded(model, tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once_and_says_how_much_it_takes(dtype, tmp_path):
    saved(tmp_path, make("llama", dtype), "lorta", "llama")
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    exact = merge(tmp_path / "adapter", tmp_path / "exact", dtype=torch.float32)
    assert (report.dtypes, exact.dtypes) == ((dtype,), (torch.float32,))
    old, new, whole = (tensors(tmp_path / name) for name in ("base", "merged", "exact"))
    lost = {}
    for name, (_, value) in new.items():
        # The exact sum, rounded once.
        assert value.dtype == dtype
        assert torch.equal(value, whole[name][1].to(dtype))
        delta = whole[name][1] - old[name][1].float()
        if delta.any():
            off = (value.float() - whole[name][1]).norm() / delta.norm()
            lost[name.removesuffix(".weight")] = float(off)
    assert report.rounding == pytest.approx(lost, rel=1e-3)
    assert report.worst == pytest.approx(max(lost.values()), rel=1e-3)
    # Rounding to nearest moves no value by more than eps / 2 of it.
    bound = torch.finfo(dtype).eps / 2
    for name, (_, value) in new.items():
        off = (value.float() - whole[name][1]).abs()
        assert bool((off <= bound * whole[name][1].abs() + 1e-7).all())
    assert f"rounding errs by {report.median:.1%} of the update in the median" in str(report)
    assert exact.worst == 0


def test_the_dtype_is_chosen_by_name_and_said_in_the_configuration(tmp_path):
    model = saved(tmp_path, make("llama"), "lotr", "llama")
    report = merge(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    assert {value.dtype for _, value in tensors(tmp_path / "merged").values()} == {torch.bfloat16}
    merged = loaded(model, tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert_same_outputs(logits(merged).float(), logits(model), dtype=torch.bfloat16)
    assert 0 < report.median <= report.worst < 0.1
    total = json.loads((tmp_path / "merged" / INDEX).read_text())["metadata"]["total_size"]
    base = json.loads((tmp_path / "base" / INDEX).read_text())["metadata"]["total_size"]
    assert total * 2 == base


def test_float64_is_merged_in_float64(tmp_path):
    model = saved(tmp_path, make("gpt2", torch.float64), "lotr", "gpt2")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(model, tmp_path / "merged")
    assert merged.dtype == torch.float64
    assert_same_outputs(logits(merged), logits(model))


def test_tied_embeddings_stay_tied(tmp_path):
    config = make("llama").config
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        model = saved(tmp_path, hf.LlamaForCausalLM(config), "lotr", "llama")
    assert "lm_head.weight" not in tensors(tmp_path / "base")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(model, tmp_path / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert_same_outputs(logits(merged), logits(model))


@pytest.mark.parametrize(
    "kwargs", [{"modules_to_save": ["lm_head"]}, {"target_modules": "lm_head"}]
)
@embeddings_saved
@pytest.mark.filterwarnings("ignore:tie_word_embeddings=True:UserWarning")
@pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning")
def test_what_is_tied_cannot_be_trained_apart(kwargs, tmp_path):
    saved(tmp_path, make("qwen2"), "lotr", "qwen2", **kwargs)
    with pytest.raises(ValueError, match=r"lm_head.weight was trained.*one tensor.*merge_and_unl"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@embeddings_saved
def test_an_output_embedding_of_its_own_is_merged(tmp_path):
    model = saved(tmp_path, make("llama"), "lotr", "llama", target_modules=["lm_head", "q_proj"])
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert report.n_weights == 3
    merged = loaded(model, tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(model))
    to_lora(tmp_path / "adapter", tmp_path / "lora")
    plain = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "lora")
    assert_same_outputs(logits(plain), logits(model))


@pytest.mark.parametrize("bias", ["all", "lotr_only"])
def test_what_was_trained_in_full_takes_the_old_ones_place(bias, tmp_path):
    kwargs = {"bias": bias, "modules_to_save": ["classifier", "LayerNorm"]}
    model = saved(tmp_path, make("bert"), "lotr", "bert", **kwargs)
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert {"classifier.weight", "classifier.bias"} < set(report.replaced)
    assert "bert.encoder.layer.0.attention.self.query.bias" in report.replaced
    assert ("bert.pooler.dense.bias" in report.replaced) == (bias == "all")
    merged = loaded(model, tmp_path / "merged")
    assert_same_outputs(logits(merged), logits(model))


@pytest.mark.parametrize(
    ("source", "task"),
    [("bare", "SEQ_CLS"), ("bare", None), ("masked", "SEQ_CLS"), ("other labels", None)],
)
def test_a_head_that_the_checkpoint_lacks_is_added(source, task, tmp_path):
    config = make("bert").config
    with torch.random.fork_rng():
        base = {
            "bare": lambda: make("bert").bert,
            "masked": lambda: hf.BertForMaskedLM(config),
            "other labels": lambda: make("bert"),
        }[source]()
        base.save_pretrained(tmp_path / "base")
        model = hf.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True
        )
        kwargs = {"modules_to_save": ["classifier", "pooler"], "task_type": task}
        config = LoTRConfig(target_modules=TARGETS["bert"], **kwargs)
        model = peft.get_peft_model(model, config)
        moved(model)
    model.save_pretrained(tmp_path / "adapter")
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert ("classifier.weight" in report.added) == (source != "other labels")
    merged = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.num_labels == 5
    assert merged.config.architectures == ["BertForSequenceClassification"]
    assert_same_outputs(logits(merged), logits(model))


def test_an_adapter_of_the_bare_model_goes_into_a_checkpoint_with_a_head(tmp_path):
    make("bert").save_pretrained(tmp_path / "base")
    model = hf.BertModel.from_pretrained(tmp_path / "base")
    config = LoTRConfig(target_modules=["query"], task_type="FEATURE_EXTRACTION")
    with torch.random.fork_rng():
        model = peft.get_peft_model(model, config)
        moved(model)
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert tensors(tmp_path / "merged").keys() == tensors(tmp_path / "base").keys()
    merged = hf.BertModel.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        found, expected = (m.eval()(input_ids=tokens())[0] for m in (merged, model))
    assert_same_outputs(found, expected)


def test_experts_that_the_checkpoint_has_one_by_one_are_refused(tmp_path):
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    sizes |= {"intermediate_size": 32, "num_local_experts": 4, "num_key_value_heads": 2}
    base = hf.MixtralForCausalLM(hf.MixtralConfig(**sizes))
    base.save_pretrained(tmp_path / "base")
    config = LoTRConfig(r=4, target_modules=["q_proj"], modules_to_save=["experts"])
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"mlp.experts.* in another layout than the model"):
        merge(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    saved(folder, make("llama"), "lotr", "llama")
    model = peft.get_peft_model(make("bert"), METHODS["adp"](target_modules=["query"]))
    model.save_pretrained(folder / "adp")
    make("bert").save_pretrained(folder / "bert")
    return folder


def pickled(base):
    for path in base.glob("model*"):
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"pickle")


def quantised(base):
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (base / "config.json").write_text(json.dumps(config))


def without_a_shard(base):
    next(base.glob("model-00002*")).unlink()


def cut_off(base):
    path = next(base.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(base):
    path = next(p for p in base.glob("*.safetensors") if _Q in safetensors.torch.load_file(p))
    rest = safetensors.torch.load_file(path)
    del rest[_Q]
    safetensors.torch.save_file(rest, path)
    index = json.loads((base / INDEX).read_text())
    del index["weight_map"][_Q]
    (base / INDEX).write_text(json.dumps(index))


def of_another_size(base):
    path = next(p for p in base.glob("*.safetensors") if _Q in safetensors.torch.load_file(p))
    rest = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**rest, _Q: rest[_Q][:-1].clone()}, path)


def empty(base):
    shutil.rmtree(base)
    base.mkdir()


_Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (pickled, ValueError, r"\.bin files.*save_pretrained"),
        (quantised, ValueError, "is quantised.*unquantised checkpoint as base="),
        (without_a_shard, FileNotFoundError, "model-00002.*not in"),
        (cut_off, ValueError, "model-00002.* is not a whole safetensors file"),
        (without_a_tensor, ValueError, f"no tensor for {_Q}.*base="),
        (of_another_size, ValueError, rf"{_Q} is F32 \(47, 48\).*\(48, 48\)"),
        (empty, FileNotFoundError, "no config.json"),
    ],
)
def test_a_base_that_cannot_be_merged_into_is_refused(damage, error, message, example, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(example / "base", base)
    damage(base)
    with pytest.raises(error, match=message):
        merge(example / "adapter", tmp_path / "merged", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("adapter", "kwargs", "error", "message"),
    [
        ("adapter", {"base": "bert"}, ValueError, "does not fit the base.*trained on as base="),
        ("adapter", {"dtype": "int8"}, ValueError, "dtype must be one of float64, .*'int8'"),
        ("adapter", {"base": "nowhere"}, FileNotFoundError, "no folder .*give its folder as base="),
        ("adp", {"base": "bert"}, TypeError, "query: .*variant='rep'"),
        ("adp", {}, ValueError, "does not say which base model.*base="),
        ("missing", {}, FileNotFoundError, "no adapter_config.json"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    adapter, kwargs, error, message, example, tmp_path
):
    if "base" in kwargs:
        kwargs = kwargs | {"base": example / kwargs["base"]}
    with pytest.raises(error, match=message):
        merge(example / adapter, tmp_path / "merged", **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_is_pointed_to_its_own_method(tmp_path):
    model = peft.get_peft_model(make("llama"), LoTRConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="merge_and_unload"):
        merge(model, tmp_path / "merged")


def test_a_sum_that_is_not_finite_leaves_nothing_behind(example, tmp_path):
    shutil.copytree(example / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    cores = safetensors.torch.load_file(path)
    name = next(key for key in cores if key.endswith(".g"))
    for value in (math.nan, 1e9):
        cores[name].fill_(value)
        safetensors.torch.save_file(cores, path)
        with pytest.raises(ValueError, match=r"not finite in torch.float16.*nothing was written"):
            merge(tmp_path / "adapter", tmp_path / "merged", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_output_that_holds_something_is_left_alone(example):
    with pytest.raises(FileExistsError, match="not empty"):
        merge(example / "adapter", example / "bert")
