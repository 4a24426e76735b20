"""What the rates benchmark trains: a small model made here, and real ones."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from antibodies import antibodies
from peft import TaskType
from text_tasks import Batch, Score, Task, film_reviews, novel, read_text
from torch import Tensor, nn
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT, BATCH, PRETRAINING = 64, 8, 800


def of_bytes(
    texts: list[Path],
    width: int,
    depth: int,
    make: Callable[[int, int], nn.Module] | None = None,
) -> Task:
    """A Llama of a given width and depth that knows the first texts, to learn the last in rot13.

    The bytes of the last text are moved by 13 letters: the words are known, none of the letters is.
    """
    *known, last = [read_text(path) for path in texts]
    base = pretrained(as_bytes("".join(known)), width, depth, make or llama)
    new = as_bytes(codecs.encode(last, "rot13"))
    cut = len(new) * 9 // 10
    held_out = [chunks(new[cut:], 96, torch.Generator().manual_seed(seed)) for seed in (0, 1)]

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = chunks(new[:cut], BATCH, generator)
            yield {"input_ids": rows, "labels": rows}

    def score(which: int):
        @torch.inference_mode()
        def loss(model: nn.Module) -> Score:
            model.eval()
            return model(input_ids=held_out[which], labels=held_out[which]).loss.item(), None

        return loss

    name = f"bytes, width {width}, {depth} layers"
    return Task(name, base, TaskType.CAUSAL_LM, batches, score(0), score(1))


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode("ascii", "ignore")))


def chunks(data: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - CONTEXT, (count,), generator=generator)
    return torch.stack([data[start : start + CONTEXT] for start in starts])


def llama(width: int, depth: int) -> nn.Module:
    """A model of bytes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 8 * 8,
            num_hidden_layers=depth,
            num_attention_heads=max(width // 32, 2),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
    )


def pretrained(
    data: Tensor, width: int, depth: int, make: Callable[[int, int], nn.Module]
) -> nn.Module:
    """A model of bytes, trained from scratch."""
    torch.manual_seed(0)
    model = make(width, depth)
    rate = 3e-3 * math.sqrt(128 / width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in trange(PRETRAINING, desc=f"pre-training, width {width}, {depth} layers"):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / PRETRAINING)
        rows = chunks(data, 2 * BATCH, generator)
        model(input_ids=rows, labels=rows).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def tasks(options) -> Iterator[Task]:
    """The tasks that the options name, one at a time."""
    if options.task == "bytes":
        for width, depth in itertools.product(options.widths, options.depths):
            yield of_bytes(options.text, width, depth)
    elif options.task == "antibodies":
        yield antibodies(options.model, options.text[0])
    elif options.task == "sentiment":
        yield film_reviews(0)
    else:
        yield novel(options.model, options.text[0])
