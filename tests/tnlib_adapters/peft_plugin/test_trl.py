"""TRL's preference training starts at ln 2: its reference model is a copy of the loaded adapter."""

from __future__ import annotations

import itertools
import math

import peft
import pytest
import transformers as hf

from tests.tnlib_adapters.adapters import alone
from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import VOCABULARY, make, train

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def tokenizer():
    """Words w0, w1, ... and the signs that a chat needs."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words |= {f"w{k}": k for k in range(4, VOCABULARY)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def loaded(request, tmp_path, monkeypatch):
    """A model with an adapter of a method that was trained, saved and loaded, to be trained on."""
    # Of the cache of data sets, which cannot name every function; there is nothing to be cached.
    names = itertools.count()
    hasher = datasets.fingerprint.Hasher
    monkeypatch.setattr(hasher, "hash", classmethod(lambda kind, value: f"{next(names):016x}"))
    method = request.param
    config = METHODS[method](
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **alone(method)
    )
    model = peft.get_peft_model(make("llama"), config)
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    return peft.PeftModel.from_pretrained(make("llama"), tmp_path / "adapter", is_trainable=True)


def options(tmp_path):
    """What the trainers have in common."""
    return {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def logged(trainer, name):
    """The values of one quantity in a trainer's log."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("loaded", sorted(METHODS), indirect=True)
def test_a_step_of_dpo_starts_at_ln_2(loaded, tmp_path):
    rows = [
        {"prompt": f"w{k} w{k + 1}", "chosen": f" w{k + 2} w{k + 3}", "rejected": f" w{k + 4} w5"}
        for k in range(4, 12)
    ]
    trainer = trl.DPOTrainer(
        model=loaded,
        args=trl.DPOConfig(**options(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loaded", sorted(METHODS), indirect=True)
def test_a_step_of_grpo_starts_without_divergence(loaded, tmp_path):
    """The reference there is a copied adapter too; how far the model is from it is logged."""
    trainer = trl.GRPOTrainer(
        model=loaded,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=trl.GRPOConfig(
            **options(tmp_path), beta=0.1, num_generations=4, max_completion_length=5
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": f"w{k} w5"} for k in range(4, 16)]),
        processing_class=tokenizer(),
    )
    trainer.train()
    divergences = logged(trainer, "kl")
    assert abs(divergences[0]) < 1e-6
    assert divergences[-1] > 1e-6
