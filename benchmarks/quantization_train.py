"""A causal model fine-tuned on a text over a base in 4 bits: perplexity, bytes and seconds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fine_tuning
import harness
import torch
from fine_tuning import LORA, stepper
from peft import TaskType
from quantization_models import (
    METHODS,
    QLORA,
    built,
    byte_counts,
    equal_rank,
    model_name,
    trained_values,
)
from step_memory import peak_bytes, trim_memory, unpooled
from step_models import ratio
from task import silence
from text_tasks import BATCH, HELD_OUT, TOKENS, DemoError, Task, causal_model, language, read_chunks
from torch import nn
from tqdm import tqdm

FULL_RATE = 1e-4


def novels(options: argparse.Namespace) -> Task:
    """Chunks of all texts to train on, and some from all over another one to measure on."""
    held_out = read_chunks(options.held_out, options.model)
    if len(held_out) < HELD_OUT:
        raise DemoError(f"--held-out {options.held_out} has {len(held_out)} chunks, not {HELD_OUT}")
    test = held_out[torch.linspace(0, len(held_out) - 1, HELD_OUT).long()]
    training = [read_chunks(text, options.model) for text in options.text]
    return language(causal_model(options.model), torch.cat(training), test, test)


def adapter_of(method: str) -> str:
    """The name that the table of fine-tuning has for a method's adapter."""
    adapter = METHODS[method].adapter
    return LORA if adapter == "LoRA" else str(adapter)


def rate(method: str) -> float:
    return fine_tuning.RATES["language"] if adapter_of(method) in fine_tuning.METHODS else FULL_RATE


def made(base: nn.Module, method: str, rank: int, seed: int) -> nn.Module:
    """The model of a method on PEFT's default targets; `rank` is DoTA's."""
    if METHODS[method].adapter is None:
        return built(base, method, None, seed)
    own = {"r": rank} if METHODS[method].adapter == "DoTA" else {}
    config = fine_tuning.METHODS[adapter_of(method)](task_type=TaskType.CAUSAL_LM, **own)
    return built(base, method, config, seed)


def prepared(folder: Path, method: str, rank: int, seed: int) -> Callable[[], Any]:
    """The second step of training, optimizer included; its tokens are random."""
    silence()
    model = made(causal_model(folder), method, rank, seed)
    tokens = torch.randint(model.config.vocab_size, (BATCH, TOKENS))  # type: ignore[union-attr]
    batch = {"input_ids": tokens, "labels": tokens}
    step = stepper(model, [batch, batch], rate(method), tqdm(disable=True))
    step()
    trim_memory()
    return step


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a method."""
    task = novels(options)
    models = {QLORA: made(task.base, QLORA, 0, options.seed)}
    rank = equal_rank(task.base, trained_values(models[QLORA]))
    for name in tqdm(options.methods, "making models"):
        if name not in models:
            models[name] = made(task.base, name, rank, options.seed)
    batch = next(task.batches(options.seed))
    records = []
    for name in tqdm(options.methods, "counting bytes, loss before"):
        model = models[name]
        record = {"method": name, "rank": rank if METHODS[name].adapter == "DoTA" else None}
        record |= {"rate": rate(name), "before": math.exp(task.test(model)[0])}
        model.train()
        records.append(record | byte_counts(model, lambda model=model: model(**batch).loss))
    rates = {name: rate(name) for name in models}
    seconds = fine_tuning.train(task, models, rates, options.steps, options.seed)
    for record in tqdm(records, "loss after"):
        name = record["method"]
        record["after"] = math.exp(task.test(models[name])[0])
        record["seconds"] = harness.summary(seconds[name])
        record["to_qlora"] = ratio(seconds[name], seconds[QLORA])
    del models, model, task
    for record in tqdm(records, "peaks"):
        arguments = options.model, record["method"], rank, options.seed
        record["rise"] = peak_bytes(options.device, unpooled, prepared, *arguments)
    return records


def caption(records: list[dict[str, Any]], options: argparse.Namespace) -> str:
    texts = ", ".join(text.name for text in options.text)
    ranks = {record["rank"] for record in records if record["rank"]}
    dota = f"DoTA of rank {ranks.pop()}, which trains nearest to as many values; " if ranks else ""
    return (
        f"{model_name(options)}, float32 where not in 4 bits; LoRA of rank 8 "
        f"(alpha=16) on PEFT's default targets, queries and values, {dota}other methods at their "
        f"defaults. {options.steps} steps of {BATCH} chunks of {TOKENS} tokens of {texts}; "
        f"perplexity of {HELD_OUT} chunks from all over {options.held_out.name}, which is not "
        "trained on. Learning rates as in fine_tuning.md, not tuned for this. All models are "
        "trained side by side, a step each in turn on the same batch; a step is forward, backward, "
        "clipping and AdamW. Full fine-tuning counts its weights as base."
    )
