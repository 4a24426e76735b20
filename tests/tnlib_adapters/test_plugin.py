"""What PEFT promises of an adapter, on BERT, Llama (grouped queries) and GPT-2 (Conv1D)."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from unittest import mock

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from transformers import Trainer, TrainingArguments

from tests.tnlib_adapters.models import MAKERS, TARGETS, logits, make, tokens, train
from tnlib_adapters import DoTAConfig
from tnlib_adapters.plugin import registry

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ARCHITECTURES = sorted(MAKERS)


def config(name, **kwargs):
    return DoTAConfig(**({"r": 4, "target_modules": TARGETS[name]} | kwargs))


def trained(name, **kwargs):
    """An adapted model after a few steps, its losses and the base's outputs."""
    model = make(name)
    before = logits(model)
    model = peft.get_peft_model(model, config(name, **kwargs))
    return model, train(model), before


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_model(name, dtype):
    model = make(name, dtype)
    before = logits(model)
    adapted = peft.get_peft_model(model, config(name))
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("start", [True, "random"])
def test_training_reaches_every_core_and_lowers_the_loss(name, start):
    model = peft.get_peft_model(make(name), config(name, init_weights=start))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = train(model, steps=4)
    assert losses[-1] < losses[0]
    moved = {
        n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])
    }
    assert moved == set(before)
    assert all("dota_update" in n and "anchor" not in n for n in before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_disabled_and_unloaded_are_the_base_bit_for_bit(name):
    model, _, before = trained(name)
    assert not torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merge_and_unmerge_within_rounding(name):
    model, _, _ = trained(name)
    expected = logits(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is type(make(name))
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


LOAD = """
import sys, torch
from unittest import mock
import peft, tnlib_adapters
from tests.tnlib_adapters.models import logits, make
base = make(sys.argv[1])
with mock.patch("tnlib_adapters.pretrained.mpo_decompose", side_effect=AssertionError):
    model = peft.PeftModel.from_pretrained(base, sys.argv[2])
torch.save(logits(model), sys.argv[3])
"""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_new_process_loads_the_same_function_and_decomposes_nothing(name, tmp_path):
    model, _, _ = trained(name)
    model.save_pretrained(tmp_path / "adapter")
    output = tmp_path / "logits.pt"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, name, str(tmp_path / "adapter"), str(output)],
        check=True,
    )
    assert torch.equal(torch.load(output, weights_only=True), logits(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("start", [True, "random"])
def test_the_file_holds_what_was_trained_and_theta_0(name, start, tmp_path):
    model, _, _ = trained(name, init_weights=start)
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    values = sum(tensor.numel() for tensor in saved.values())
    trainable, _ = model.get_nb_trainable_parameters()
    assert values == trainable * (2 if start is True else 1)
    assert all("default" not in key for key in saved)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_gives_the_trained_outputs(low_cpu_mem_usage, dtype, tmp_path):
    model = peft.get_peft_model(make("llama", dtype), config("llama"))
    train(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        make("llama", dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded), logits(model))
    assert all(p.device.type == "cpu" for p in loaded.parameters())


def test_several_adapters_share_one_base():
    model, _, before = trained("llama")
    first = logits(model)
    model.add_adapter("second", config("llama", r=2, target_modules=["q_proj", "up_proj"]))
    model.set_adapter("second")
    assert torch.equal(logits(model), before)
    train(model)
    second = logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not torch.equal(both, first)
    assert not torch.equal(both, second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with pytest.warns(UserWarning, match="active which is now deleted"):
        model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model), second)
    assert not any(".default" in key for key in model.state_dict())


def test_two_adapters_from_files(tmp_path):
    outputs = {}
    for name, start in (("one", True), ("two", "random")):
        model, _, _ = trained("bert", init_weights=start)
        outputs[name] = logits(model)
        model.save_pretrained(tmp_path / name)
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path / "one", adapter_name="one")
    loaded.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("two", "one"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), outputs[name])


def test_transformers_own_adapter_api(tmp_path):
    model, _, before = trained("llama")
    model.save_pretrained(tmp_path)
    plain = make("llama")
    plain.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=0)
    plain.disable_adapters()
    assert torch.equal(logits(plain), before)


def test_modules_to_save_travel_with_the_cores(tmp_path):
    model = peft.get_peft_model(
        make("bert"), config("bert", modules_to_save=["classifier"], task_type="SEQ_CLS")
    )
    train(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("bert"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert {k for k in saved if "dota" not in k} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }


def test_trainer_trains_checkpoints_and_resumes(tmp_path):
    data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens(rows=8)]

    def trainer(model, steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        return Trainer(model=model, args=arguments, train_dataset=data)

    straight = peft.get_peft_model(make("bert"), config("bert"))
    trainer(straight, 4).train()
    resumed = peft.get_peft_model(make("bert"), config("bert"))
    trainer(resumed, 4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(logits(resumed), logits(straight), rtol=0, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = peft.get_peft_model(make("llama"), config("llama"))
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
        model.train()
        model(tokens(), labels=tokens()).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_deepcopy_is_independent():
    model, _, _ = trained("gpt2")
    expected = logits(model)
    twin = copy.deepcopy(model)
    train(twin)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(twin), expected)


def test_the_residual_start_is_the_same_training():
    one, losses, _ = trained("llama")
    two, others, before = trained("llama", residual=True)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    with two.disable_adapter():
        assert torch.equal(logits(two), before)
    two.merge_adapter()
    two.unmerge_adapter()
    torch.testing.assert_close(logits(two), logits(one), rtol=1e-4, atol=1e-4)


def test_counts_without_weights_on_the_meta_device():
    with torch.device("meta"):
        model = MAKERS["llama"]()
    model = peft.get_peft_model(model, config("llama"))
    expected = peft.get_peft_model(make("llama"), config("llama"))
    assert model.get_nb_trainable_parameters()[0] == expected.get_nb_trainable_parameters()[0]


def test_a_large_model_shows_progress(capsys):
    peft.get_peft_model(make("bert"), config("bert", progressbar=True))
    assert "initialising cores" in capsys.readouterr().err
    peft.get_peft_model(make("bert"), config("bert"))
    assert capsys.readouterr().err == ""


def test_a_weight_with_nan_is_refused_by_name_and_the_model_is_left_as_it_was():
    model = make("bert")
    layer = model.bert.encoder.layer[1].attention.self.query
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer.1.attention.self.query.*nan or inf"):
        peft.get_peft_model(model, config("bert"))
    assert type(model.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_linear_is_refused_with_its_name():
    with pytest.raises(TypeError, match=r"word_embeddings.*cannot adapt a.*Embedding"):
        peft.get_peft_model(make("bert"), config("bert", target_modules=["word_embeddings"]))


def test_an_adapter_that_fails_leaves_the_others_working():
    model, _, _ = trained("bert")
    expected = logits(model)
    with pytest.raises(TypeError, match="Embedding"):
        model.add_adapter("second", config("bert", target_modules=["query", "word_embeddings"]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), expected)
    assert not any("second" in key for key in model.state_dict())


def test_safe_merge_refuses_nan_in_any_layer_and_changes_nothing():
    model, _, before = trained("bert")
    last = [p for n, p in model.named_parameters() if "core_0" in n][-1]
    with torch.no_grad():
        last.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"layer.1.intermediate.*nothing was merged"):
        model.merge_adapter(safe_merge=True)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_training_a_new_adapter_from_a_saved_configuration_is_refused(tmp_path):
    config("bert").save_pretrained(tmp_path)
    saved = peft.PeftConfig.from_pretrained(tmp_path)
    saved.inference_mode = False
    model = peft.get_peft_model(make("bert"), saved)
    with pytest.raises(RuntimeError, match="set init_weights=True"):
        train(model)


def test_attention_that_bypasses_its_layer_is_refused():
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2)})
    with pytest.raises(TypeError, match=r"attention.out_proj: cannot adapt"):
        peft.get_peft_model(model, DoTAConfig(target_modules=["out_proj"]))


def test_the_saved_configuration_names_the_method(tmp_path):
    model, _, _ = trained("bert")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "DOTA"
    assert saved["init_weights"] == "saved"
    assert peft.PeftConfig.from_pretrained(tmp_path).r == 4


def test_an_old_peft_is_refused():
    with (
        mock.patch.object(registry.peft, "__version__", "0.18.1"),
        pytest.raises(ImportError, match=r"needs peft 0\.20 or newer, found 0\.18\.1"),
    ):
        registry.register("dota", DoTAConfig)
