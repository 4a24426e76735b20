"""Sentiment classification with adapters: making the models, training and measuring them."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from assets import DemoError
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from sentences import Sentence, Splits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tnlib_adapters import DoTAConfig

METHODS = {"dota": "DoTA", "dota-random": "DoTA, random cores", "lora": "LoRA"}


@dataclass(frozen=True)
class Source:
    """The encoder to adapt: a folder or hub id, and the names of the linear layers to adapt."""

    model: str
    targets: tuple[str, ...] = ("query", "value")


@dataclass(frozen=True)
class Settings:
    """How one model is trained."""

    learning_rate: float
    steps: int = 120
    seed: int = 0
    batch_size: int = 32
    validate_every: int = 30
    progress: bool = True


@dataclass(frozen=True)
class Record:
    """What one training run gave."""

    trainable_parameters: int
    adapter_bytes: int
    validation_steps: list[int]
    validation_losses: list[float]
    seconds_per_step: float


class Encoder:
    """Turns sentences into padded model inputs, at most `max_length` tokens long."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 64) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, sentences: Sequence[Sentence]) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs, padded to the longest sentence given, and the labels."""
        inputs = self.tokenizer(
            [sentence.text for sentence in sentences],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return dict(inputs), torch.tensor([sentence.label for sentence in sentences])


def make_encoder(source: Source) -> Encoder:
    """The tokenizer that belongs to a model."""
    return Encoder(load_pretrained(AutoTokenizer, source.model))


def make_model(source: Source, method: str, rank: int, seed: int) -> PeftModel:
    """A pre-trained encoder with a new two-way classifier head, and adapters on its targets.

    The same seed gives the same head whatever the method.
    """
    torch.manual_seed(seed)
    model = load_pretrained(AutoModelForSequenceClassification, source.model, num_labels=2)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # less than one pass over the data is made: nothing to regularise
    config = make_config(method, rank, _check_targets(model, source), _head_names(model))
    return get_peft_model(model, config)


def make_config(method: str, rank: int, targets: list[str], heads: list[str]) -> PeftConfig:
    """The peft configuration of one of `METHODS`; the modules named in `heads` train in full."""
    common: dict[str, Any] = {
        "r": rank,
        "target_modules": targets,
        "modules_to_save": heads,
        "task_type": TaskType.SEQ_CLS,
    }
    if method == "lora":
        return LoraConfig(lora_alpha=2 * rank, **common)
    return DoTAConfig(init_weights="random" if method == "dota-random" else True, **common)


def load_pretrained(factory: Any, model: str, **options: Any) -> Any:
    """Load with one of transformers' Auto classes; say what to do if the model cannot be had."""
    try:
        return factory.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        raise DemoError(
            f"cannot load the model {model!r}: {error}\n"
            "Give --model a folder that holds a transformers encoder, or a model id of the hub."
        ) from error


def _check_targets(model: PreTrainedModel, source: Source) -> list[str]:
    linears = [
        name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)
    ]
    known = sorted({name.split(".")[-1] for name in linears})
    missing = [target for target in source.targets if target not in known]
    if missing:
        raise DemoError(
            f"{source.model} has no linear layers named {', '.join(missing)}; its linear layers "
            f"are named {', '.join(known)}. Choose among them with --target-modules."
        )
    return list(source.targets)


def _head_names(model: PreTrainedModel) -> list[str]:
    """The modules outside the pre-trained body that have weights."""
    children = dict(model.named_children())
    del children[model.base_model_prefix]
    return [name for name, child in children.items() if any(True for _ in child.parameters())]


def adapter_parameters(model: PeftModel) -> int:
    """The number of trainable parameters, the classifier head not counted."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return sum(p.numel() for name, p in trainable if "modules_to_save" not in name)


def choose_ranks(source: Source, dota_rank: int) -> dict[str, int]:
    """Each method's rank, LoRA's such that its size comes nearest to DoTA's."""
    dota = adapter_parameters(make_model(source, "dota", dota_rank, seed=0))
    one_rank = adapter_parameters(make_model(source, "lora", 1, seed=0))
    return {"dota": dota_rank, "dota-random": dota_rank, "lora": max(1, round(dota / one_rank))}


def batch_order(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless shuffled batches of sentence numbers, alike in length to save padding.

    Each pass cuts a new shuffle into pools of eight batches, sorts each pool by length, and
    gives the batches of all pools in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = 8 * batch_size
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=lengths.__getitem__)
            batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth of the steps, then linear decay to zero."""
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train(
    model: PeftModel, encoder: Encoder, splits: Splits, settings: Settings, title: str = ""
) -> Record:
    """Train the adapters and the head; validate at the start, regularly, and at the end."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    factor = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.steps)
    )
    lengths = [len(sentence.text) for sentence in splits.train]
    order = batch_order(lengths, settings.batch_size, settings.seed)
    batches = itertools.islice(order, settings.steps)
    curve = {0: evaluate(model, encoder, splits.validation)[0]}
    seconds = []
    with tqdm(batches, title, settings.steps, disable=not settings.progress) as bar:
        for step, batch in enumerate(bar, start=1):
            start = time.perf_counter()
            train_step(model, encoder([splits.train[i] for i in batch]), weights, optimizer)
            seconds.append(time.perf_counter() - start)
            factor.step()
            if step % settings.validate_every == 0 or step == settings.steps:
                curve[step] = evaluate(model, encoder, splits.validation)[0]
                bar.set_postfix_str(f"validation loss {curve[step]:.3f}")
    return Record(
        trainable_parameters=sum(p.numel() for p in weights),
        adapter_bytes=adapter_bytes(model),
        validation_steps=list(curve),
        validation_losses=list(curve.values()),
        seconds_per_step=statistics.median(seconds),
    )


def train_step(
    model: PeftModel,
    batch: tuple[dict[str, Tensor], Tensor],
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """One step of gradient descent, with the gradient's norm clipped to 1."""
    inputs, labels = batch
    model.train()
    cross_entropy(model(**inputs).logits, labels).backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def evaluate(
    model: PeftModel, encoder: Encoder, sentences: Sequence[Sentence]
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in batches of sentences of similar length."""
    model.eval()
    loss, correct = 0.0, 0
    by_length = sorted(sentences, key=lambda sentence: len(sentence.text))
    for start in range(0, len(by_length), 32):
        inputs, labels = encoder(by_length[start : start + 32])
        logits = model(**inputs).logits
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
    return loss / len(sentences), correct / len(sentences)


def adapter_bytes(model: PeftModel) -> int:
    """The size of the adapter file that peft saves."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size
