"""An extracted adapter turns the base into the fine-tuned model, as far as its size allows."""

from __future__ import annotations

import copy
import json
import math
import os

import peft
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.expert_models import whole_model
from tests.tnlib_adapters.forms import FITTED, MERGEABLE, METHODS
from tests.tnlib_adapters.models import assert_same_outputs, logits, make
from tests.tolerances import rounding
from tnlib_adapters import extract

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Could not find a config file"
)
FULL = LoraConfig(r=96)


def changed(model, rank=2, seed=0, size=0.05):
    """A copy of a model every weight of which changed by a matrix of low rank, and its vectors."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in other.named_parameters():
            if value.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                left = torch.randn(value.shape[0], rank, generator=generator)
                right = torch.randn(rank, value.shape[1], generator=generator)
                value += size * (left @ right).to(value)
            elif value.ndim == 1:
                value += size * torch.randn(value.shape, generator=generator).to(value)
    return other


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "bert", "vit"])
def test_a_lora_of_the_changes_rank_is_the_fine_tuned_model(name, tmp_path):
    """Norms and biases are in it; weights that are no targets are those that were not changed."""
    base = make(name)
    after = changed(base)
    with torch.no_grad():
        for key, value in after.named_parameters():
            if "classifier" in key or "lm_head" in key or "pooler" in key:
                value.copy_(base.get_parameter(key))
    saved(base, tmp_path / "base")
    saved(after, tmp_path / "after")
    config = LoraConfig(r=2, target_modules="all-linear")
    found = extract(tmp_path / "base", tmp_path / "after", config, tmp_path / "lora")
    assert found.error <= rounding(torch.float32, 96)
    loaded = peft.PeftModel.from_pretrained(make(name), tmp_path / "lora").eval()
    assert_same_outputs(logits(loaded), logits(after.eval()))
    assert "README.md" in os.listdir(tmp_path / "lora")


@pytest.mark.parametrize("form", MERGEABLE)
def test_every_method_extracts_what_it_made(form, tmp_path):
    """A model into which an adapter of a method was merged is taken apart again."""
    fields = {"target_modules": ["q_proj", "v_proj"], **alone(form)}
    start = {"init_weights": "random"} if form == "dota" else {}
    adapted = peft.get_peft_model(make("llama"), METHODS[form](**(fields | start)))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for value in adapted.parameters():
            if value.requires_grad:
                value.data += 0.05 * torch.randn_like(value)
    after = adapted.merge_and_unload()
    saved(make("llama"), tmp_path / "base")
    saved(after, tmp_path / "after")
    config = METHODS[form](target_modules=["q_proj", "v_proj"])
    found = extract(tmp_path / "base", tmp_path / "after", config, tmp_path / "out")
    # CP finds its terms by iteration; all other forms are found exactly, up to float32 weights.
    assert found.error <= (0.35 if form == "lorta" else 1e-4)
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "out").eval()
    if form != "lorta":
        off = logits(loaded) - logits(after.eval())
        assert float(off.norm()) <= 1e-3 * float(logits(after).norm())


def test_the_error_is_that_of_the_merged_weights(tmp_path):
    base, after = make("llama"), changed(make("llama"), rank=20)
    for config in (LoraConfig(r=3), *(METHODS[form]() for form in FITTED)):
        folder = tmp_path / type(config).__name__
        found = extract(base, after, config, folder)
        merged = peft.PeftModel.from_pretrained(make("llama"), folder).merge_and_unload()
        off = norm = 0.0
        for weight in found.weights:
            old, new, own = (
                m.get_submodule(weight.name).weight.detach().double() for m in (base, after, merged)
            )
            error, size = float((own - new).norm()), float((new - old).norm())
            assert weight.norm == pytest.approx(size, rel=1e-5)
            assert weight.error == pytest.approx(error / size, abs=1e-5)
            off, norm = math.hypot(off, error), math.hypot(norm, size)
        assert found.error == pytest.approx(off / norm, abs=1e-5)


def test_ranks_are_the_best_of_every_weight(tmp_path):
    """The error of a LoRA is that of truncated singular value decompositions."""
    base, after = make("llama"), changed(make("llama"), rank=20)
    found = extract(base, after, LoraConfig(r=5), tmp_path / "lora")
    for weight in found.weights:
        name = f"{weight.name}.weight"
        delta = (after.get_parameter(name) - base.get_parameter(name)).detach().double()
        values = torch.linalg.svdvals(delta)
        best = float(values[5:].norm() / values.norm())
        assert best - 1e-6 <= weight.error <= best * (1 + 5e-3) + 1e-5


def test_budgets_and_tolerances_are_kept(tmp_path):
    base, after = make("llama"), changed(make("llama"), rank=12)
    equal = extract(base, after, LoraConfig(r=4), tmp_path / "equal")
    budget = extract(base, after, LoraConfig(r=48), tmp_path / "budget", max_params=equal.n_params)
    assert budget.n_params <= equal.n_params
    assert budget.error <= equal.error + 1e-6
    assert len({weight.ranks for weight in budget.weights}) > 1
    met = extract(base, after, LoraConfig(r=48), tmp_path / "met", eps=equal.error)
    assert met.error <= equal.error + 1e-5
    assert met.n_params <= 1.02 * equal.n_params
    lotr = METHODS["lotr"](r=40)
    within = extract(base, after, lotr, tmp_path / "within", max_params=9000)
    assert within.n_params <= 9000
    larger = extract(base, after, METHODS["lotr"](r=within.weights[0].ranks[0] + 1), tmp_path / "l")
    assert larger.n_params > 9000
    some = extract(base, after, lotr, tmp_path / "some", eps=0.5)
    assert some.error <= 0.5
    with pytest.raises(ValueError, match="largest size allowed"):
        extract(base, after, LoraConfig(r=1), tmp_path / "no", eps=0.01)
    with pytest.raises(ValueError, match="too small"):
        extract(base, after, lotr, tmp_path / "no", max_params=3)
    assert not (tmp_path / "no").exists()


def test_what_is_not_in_the_adapter_is_named(tmp_path):
    base = make("llama")
    after = changed(base)
    with torch.no_grad():
        after.model.embed_tokens.weight += 0.1
        after.model.layers[0].self_attn.k_proj.weight.copy_(
            base.model.layers[0].self_attn.k_proj.weight
        )
    found = extract(base, after, LoraConfig(r=2), tmp_path / "lora")
    assert {*found.left_out} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "modules_to_save" in found.left_out["lm_head.weight"]
    assert found.unchanged == ("model.layers.0.self_attn.k_proj",)
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "left out: lm_head.weight" in card
    assert "relative error" in card
    wanted = LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head"])
    found = extract(base, after, wanted, tmp_path / "more")
    assert not found.left_out
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "more").eval()
    assert_same_outputs(logits(loaded), logits(after.eval()))


@pytest.mark.parametrize("form", ["lotr", "rep"])
def test_norms_that_changed_are_trained_further_as_they_are(form, tmp_path):
    base = make("llama")
    after = copy.deepcopy(base)
    with torch.no_grad():
        for name, value in after.named_parameters():
            if "norm" in name:
                value.mul_(1.5)
        after.model.layers[0].self_attn.q_proj.weight += 0.01
    config = METHODS[form](target_modules=["q_proj"])
    found = extract(base, after, config, tmp_path / "out")
    assert len(found.saved) == 5
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "out").eval()
    off = logits(loaded) - logits(after.eval())
    assert float(off.norm()) <= 1e-3 * float(logits(after).norm())


@pytest.mark.parametrize("method", ["lora", "lotr"])
@pytest.mark.parametrize("pieces", [False, True])
def test_experts_of_both_layouts_are_extracted(method, pieces, tmp_path):
    """The base has experts in one tensor, the fine-tuned checkpoint perhaps one by one."""
    base = whole_model("Qwen3Moe")
    after = copy.deepcopy(base)
    with torch.no_grad():
        for value in after.parameters():
            if value.ndim == 3:
                left = torch.randn(*value.shape[:2], 1)
                value += 0.05 * left @ torch.randn(value.shape[0], 1, value.shape[2])
    saved(base, tmp_path / "base")
    saved(after, tmp_path / "after")
    path = tmp_path / "after" / "model.safetensors"
    tensors = load_file(path)
    if any(".experts.0." in name for name in tensors) != pieces:
        tensors = _other_layout(tensors)
        save_file(tensors, path, {"format": "pt"})
    assert any(".experts.0." in name for name in tensors) == pieces
    fields = {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    if method == "lora":
        config = LoraConfig(r=1, **fields)
        bound = 1e-5
    else:
        config, bound = METHODS["lotr"](**(fields | {"r": 24})), 0.9
    found = extract(tmp_path / "base", tmp_path / "after", config, tmp_path / "out")
    assert found.error <= bound
    assert [weight.shape[0] for weight in found.weights] == [8] * 4
    loaded = peft.PeftModel.from_pretrained(whole_model("Qwen3Moe"), tmp_path / "out").eval()
    ids = torch.arange(3, 14)[None]
    with torch.no_grad():
        if method == "lora":
            assert_same_outputs(loaded(input_ids=ids).logits, after.eval()(input_ids=ids).logits)


def _other_layout(tensors):
    """The tensors with experts one by one where they were in one tensor, or the other way."""
    found = {}
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for e, matrix in enumerate(value):
                gate, up = matrix.chunk(2)
                stem = name.removesuffix("gate_up_proj")
                found[f"{stem}{e}.gate_proj.weight"] = gate.contiguous()
                found[f"{stem}{e}.up_proj.weight"] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            for e, matrix in enumerate(value):
                found[f"{name.removesuffix('down_proj')}{e}.down_proj.weight"] = matrix.contiguous()
        elif ".experts." in name and name.endswith(".weight"):
            stem, _, rest = name.partition(".experts.")
            number, leaf, _ = rest.split(".")
            found.setdefault(f"{stem}.experts.{leaf}", {})[int(number)] = value
        else:
            found[name] = value
    for name in [name for name, value in found.items() if isinstance(value, dict)]:
        found[name] = torch.stack([found[name][e] for e in sorted(found[name])])
    for name in [name for name in found if name.endswith("experts.gate_proj")]:
        stem = name.removesuffix("gate_proj")
        both = found.pop(name), found.pop(f"{stem}up_proj")
        found[f"{stem}gate_up_proj"] = torch.cat(both, 1)
    return found


def test_dtypes_and_shards_may_differ(tmp_path):
    base = make("llama")
    after = changed(base, size=0.5)
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    after.to(torch.bfloat16).save_pretrained(tmp_path / "after")
    found = extract(tmp_path / "base", tmp_path / "after", LoraConfig(r=48), tmp_path / "lora")
    assert found.error <= 1e-5
    for weight in found.weights:
        name = f"{weight.name}.weight"
        delta = (after.get_parameter(name).float() - base.get_parameter(name)).detach()
        assert weight.norm == pytest.approx(float(delta.norm()), rel=1e-5)


def test_a_resized_vocabulary_is_named(tmp_path):
    base = make("llama")
    after = changed(base)
    after.resize_token_embeddings(70, mean_resizing=False)
    saved(base, tmp_path / "base")
    saved(after, tmp_path / "after")
    found = extract(tmp_path / "base", tmp_path / "after", LoraConfig(r=2), tmp_path / "lora")
    assert "(70, 48)" in found.left_out["model.embed_tokens.weight"]


def test_a_head_that_the_base_lacks_is_named_or_saved(tmp_path):
    """A classifier that was made from a language model's checkpoint has a new head."""
    after = make("bert")
    make("bert").bert.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        after.bert.encoder.layer[0].output.dense.weight += 0.01
        after.classifier.weight += 0.5
    saved(after, tmp_path / "after")
    folders = tmp_path / "base", tmp_path / "after"
    found = extract(*folders, LoraConfig(r=2, target_modules="all-linear"), tmp_path / "one")
    assert "not in the base; name its module" in found.left_out["classifier.weight"]
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"])
    extract(*folders, config, tmp_path / "two")
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "two").eval()
    assert_same_outputs(logits(loaded), logits(after.eval()))


BAD = [
    (lambda c: {"config": "lora"}, TypeError, "LoraConfig"),
    (lambda c: {"config": METHODS["adp"]()}, ValueError, "change"),
    (lambda c: {"eps": 2.0}, ValueError, "eps"),
    (lambda c: {"eps": 0.1, "max_params": 10}, ValueError, "not both"),
    (lambda c: {"max_params": 0}, ValueError, "max_params"),
    (lambda c: {"progressbar": 1}, TypeError, "progressbar"),
    (lambda c: {"finetuned": c / "base"}, ValueError, "targeted weights changed"),
    (lambda c: {"finetuned": c / "nowhere.safetensors"}, FileNotFoundError, "there is no"),
    (lambda c: {"finetuned": c / "bert"}, ValueError, "another model|not its base"),
    (lambda c: {"config": LoraConfig(target_modules=["nothing"])}, ValueError, "nothing"),
    (lambda c: {"output": c / "base"}, FileExistsError, "not empty"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = make("llama")
    saved(base, folder / "base")
    saved(changed(base), folder / "after")
    saved(make("bert"), folder / "bert")
    return folder


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_what_cannot_be_extracted_is_refused(checkpoints, tmp_path, given, kind, message):
    known = {
        "base": checkpoints / "base",
        "finetuned": checkpoints / "after",
        "config": LoraConfig(r=2),
        "output": tmp_path / "out",
    }
    with pytest.raises(kind, match=message):
        extract(**(known | given(checkpoints)))
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.iterdir()]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    base = make("llama")
    after = changed(base)
    with torch.no_grad():
        after.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for config in (LoraConfig(r=2), METHODS["lotr"](target_modules=["up_proj"])):
        with pytest.raises(ValueError, match="up_proj"):
            extract(base, after, config, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_norms_that_are_not_finite_are_refused(tmp_path):
    base = make("llama")
    after = changed(base)
    with torch.no_grad():
        after.model.norm.weight[3] = torch.inf
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds nan or inf"):
        extract(base, after, LoraConfig(r=2), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_damaged_checkpoint_is_refused_with_the_reason(checkpoints, tmp_path):
    changed(make("llama")).save_pretrained(tmp_path / "after", max_shard_size="20KB")
    shard = sorted((tmp_path / "after").glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 200)
    with pytest.raises(ValueError, match="cut off"):
        extract(checkpoints / "base", tmp_path / "after", LoraConfig(r=2), tmp_path / "out")
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        extract(checkpoints / "base", tmp_path / "after", LoraConfig(r=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_embedding_is_not_saved_apart_from_the_head(tmp_path):
    base = make("qwen2")
    after = changed(base)
    with torch.no_grad():
        after.model.embed_tokens.weight += 0.1
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match="one tensor with lm_head"):
        extract(base, after, config, tmp_path / "out")


def test_ranks_of_experts_are_not_chosen(tmp_path):
    base = whole_model("Qwen3Moe")
    after = copy.deepcopy(base)
    with torch.no_grad():
        after.model.layers[0].mlp.experts.down_proj += 0.01
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    with pytest.raises(ValueError, match="one rank for all of them"):
        extract(base, after, config, tmp_path / "out", max_params=1000)


def test_the_base_is_named_in_the_adapter(checkpoints, tmp_path):
    extract(checkpoints / "base", checkpoints / "after", LoraConfig(r=2), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoints / "base")
    assert config["inference_mode"] is True
