"""The two real tasks of the benchmarks: reviews for an encoder, a text for a causal model."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from assets import DemoError, fetch
from sentences import read_sentences, split_by_review
from sentiment import Settings, Source, batch_order, evaluate, load_pretrained, make_encoder

TOKENS, BATCH, HELD_OUT = 128, 4, 32  # of the language task: chunk length, and numbers of chunks
Batch = dict[str, Tensor]
Score = tuple[float, float | None]


@dataclass(frozen=True)
class Task:
    """A frozen model, endless batches by seed, and loss (and accuracy) on data not trained on."""

    name: str
    base: nn.Module
    kind: TaskType | None
    batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[nn.Module], Score]
    test: Callable[[nn.Module], Score]


def film_reviews(seed: int) -> Task:
    """The demo's task: its encoder, sentences, split and batches; `seed` is the head's."""
    source = Source(str(fetch("minilm")))
    splits = split_by_review(read_sentences(fetch("vader-movies")))
    encoder = make_encoder(source)
    torch.manual_seed(seed)
    base = load_pretrained(AutoModelForSequenceClassification, source.model, num_labels=2)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # as in the demo
    lengths = [len(sentence.text) for sentence in splits.train]

    def batches(seed: int) -> Iterator[Batch]:
        for numbers in batch_order(lengths, Settings(0.0).batch_size, seed):
            inputs, labels = encoder([splits.train[i] for i in numbers])
            yield {**inputs, "labels": labels}

    validate = partial(evaluate, encoder=encoder, sentences=splits.validation)
    test = partial(evaluate, encoder=encoder, sentences=splits.test)
    return Task("sentiment", base, TaskType.SEQ_CLS, batches, validate, test)


def novel(model: Path, text: Path) -> Task:
    """Chunks of a text: the last ones are the test, those before them validation."""
    base = causal_model(model)
    chunks = read_chunks(text, model)
    if len(chunks) < 3 * HELD_OUT:
        raise DemoError(f"--text {text} has {len(chunks)} chunks; {3 * HELD_OUT} are needed")
    return language(base, *chunks.split([len(chunks) - 2 * HELD_OUT, HELD_OUT, HELD_OUT]))


def causal_model(folder: Path) -> nn.Module:
    """A causal model in float32."""
    if not (folder / "config.json").is_file():
        raise DemoError(f"--model {folder} is no folder with a config.json")
    base: nn.Module = load_pretrained(AutoModelForCausalLM, str(folder), dtype=torch.float32)
    return base


def language(base: nn.Module, training: Tensor, validation: Tensor, test: Tensor) -> Task:
    """A causal model on chunks of text."""

    def batches(seed: int) -> Iterator[Batch]:
        for numbers in batch_order([TOKENS] * len(training), BATCH, seed):
            yield {"input_ids": training[numbers], "labels": training[numbers]}

    scores = [partial(chunk_loss, chunks=chunks) for chunks in (validation, test)]
    return Task("language", base, TaskType.CAUSAL_LM, batches, *scores)


def read_chunks(text: Path, model: Path) -> Tensor:
    """The tokens of a text in chunks, a row each; the rest is left out."""
    tokenizer = load_pretrained(AutoTokenizer, str(model))
    tokens = tokenizer(read_text(text), return_tensors="pt").input_ids[0]
    return tokens[: len(tokens) // TOKENS * TOKENS].view(-1, TOKENS)


def read_text(path: Path) -> str:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read --text {path}: {error}") from error


@torch.inference_mode()
def chunk_loss(model: nn.Module, chunks: Tensor) -> Score:
    """Mean cross-entropy of the next token, in nats."""
    model.eval()
    losses = [model(input_ids=x, labels=x).loss.item() * len(x) for x in chunks.split(BATCH)]
    return sum(losses) / len(chunks), None
