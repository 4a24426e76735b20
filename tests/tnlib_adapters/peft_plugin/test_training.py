"""How adapters train: Trainer, checkpoints, gradient checkpointing, precision."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.tnlib_adapters.adapters import (
    TARGETS,
    adapted,
    alone,
    every_method,
    method_of_each_structure,
    second,
)
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import TERMS, VOCABULARY, logits, make, tokens, train
from tests.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def arguments(folder, **kwargs):
    return {
        "output_dir": str(folder),
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    } | kwargs


# Cores that are shared, norms that train beside cores, and a start that is saved beside them.
@pytest.mark.parametrize(
    "method",
    [
        "lotr",
        "rep",
        "dota",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lorta", "adp")),
    ],
)
def test_trainer_trains_checkpoints_and_resumes(method, tmp_path):
    data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens(rows=16)]

    def trainer(model):
        settings = TrainingArguments(**arguments(tmp_path))
        return Trainer(model=model, args=settings, train_dataset=data)

    straight, before = adapted(method, "bert")
    trainer(straight).train()
    assert not torch.equal(logits(straight), before)
    checkpoint = tmp_path / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    resumed, _ = adapted(method, "bert")
    trainer(resumed).train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(logits(resumed), logits(straight))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_method
def test_sft_trainer_takes_the_configuration(method, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
    import datasets
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{k}": k for k in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")),
        unk_token="w0",
        pad_token="w1",
        eos_token="w1",
    )
    rows = [{"input_ids": row.tolist()} for row in tokens(rows=16)]
    model = make("llama")
    before = logits(model)
    settings = trl.SFTConfig(
        **arguments(tmp_path, gradient_checkpointing=False, bf16=False, max_length=16)
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=METHODS[method](target_modules=TARGETS["llama"]),
    )
    trainer.train()
    trained = logits(trainer.model)
    assert not torch.equal(trained, before)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "adapter")
    assert torch.equal(logits(loaded), trained)


def enable_checkpointing(model, **kwargs):
    """By the name that the installed transformers prefers."""
    base = model.get_base_model()
    if hasattr(base, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(**kwargs)
    else:
        model.gradient_checkpointing_enable(**kwargs)


@every_method
def test_gradient_checkpointing_gives_the_same_gradients(method):
    grads = []
    for checkpointing in (False, True):
        model, _ = adapted(method, "gpt2", torch.float64, init_weights=False)
        if checkpointing:
            model.enable_input_require_grads()
            enable_checkpointing(model)
        model.train()
        # Transformers computes its losses in float32.
        model(input_ids=tokens()).logits.log_softmax(-1)[..., 0].mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    # Gradients are sums over the tokens, of which some nearly cancel.
    largest = max(float(grad.abs().max()) for grad in grads[0].values())
    for name, grad in grads[0].items():
        assert grad.any(), name
        assert_close(grads[1][name], grad, TERMS, largest, condition=tokens().numel())


@method_of_each_structure
def test_cores_are_float32_over_a_float16_base(method, tmp_path):
    dtype = torch.float16
    model, before = adapted(method, "llama", dtype, **alone(method))
    assert before.dtype == dtype
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    losses = train(model, lr=2e-2)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make("llama", dtype), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert {p.dtype for n, p in loaded.named_parameters() if "base_layer" in n} == {dtype}


@method_of_each_structure
def test_without_autocast_cores_take_the_dtype_of_the_base(method, tmp_path):
    model = make("llama", torch.bfloat16)
    before = logits(model)
    config = METHODS[method](target_modules=TARGETS["llama"])
    whole = peft.get_peft_model(make("llama", torch.bfloat16), config)
    config = METHODS[method](target_modules=TARGETS["llama"])
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # Shared cores are still one tensor each.
    assert model.get_nb_trainable_parameters() == whole.get_nb_trainable_parameters()
    assert torch.equal(logits(model), before)
    losses = train(model, lr=2e-2)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        make("llama", torch.bfloat16), tmp_path, autocast_adapter_dtype=False
    )
    assert torch.equal(logits(loaded), logits(model))


@method_of_each_structure
def test_a_second_adapter_does_not_disturb_the_training_of_the_first(method):
    alone_model, _ = adapted(method, "llama", **alone(method))
    expected = train(alone_model, steps=4)
    model, _ = adapted(method, "llama", **alone(method))
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.add_adapter("second", second(method))
    assert [p for p in model.parameters() if p.requires_grad] == parameters
    assert train(model, steps=4) == expected
