"""Steps of models with random weights over a base in 4 bits: bytes and seconds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import step_models
from quantization_models import (
    EQUAL,
    METHODS,
    QLORA,
    built,
    byte_counts,
    equal_rank,
    trained_values,
)
from step_memory import peak_bytes, settled, unpooled
from step_models import LENGTH, SHAPES, Setting, Step, base_model, moved, ratio
from torch import nn
from tqdm import tqdm


def setting_of(options: argparse.Namespace) -> Setting:
    shape = SHAPES[options.shape]
    shape = replace(shape, layers=options.layers or shape.layers)
    dtype = shape.dtype or options.dtype
    return Setting(shape, options.tokens, options.rank, options.device, dtype, options.seed)


def made(base: nn.Module, method: str, setting: Setting) -> nn.Module:
    """The model of a method, with every linear layer adapted."""
    adapter = METHODS[method].adapter
    if adapter is None:
        return built(base, method, None, setting.seed)
    config = step_models.METHODS[adapter].config(setting.shape, setting.rank)
    return moved(built(base, method, config, setting.seed))


def prepared(method: str, setting: Setting) -> Callable[[], Any]:
    """A step that is ready to be measured, without the model that its own was made of."""
    return settled(Step.of(made(base_model(setting), method, setting), setting))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a method."""
    setting = setting_of(options)
    base = base_model(setting)
    models = {QLORA: made(base, QLORA, setting)}
    equal = equal_rank(base, trained_values(models[QLORA]), target_modules="all-linear")
    settings = dict.fromkeys(options.methods, setting) | {EQUAL: replace(setting, rank=equal)}
    for name in tqdm(options.methods, "making models"):
        if name not in models:
            models[name] = made(base, name, settings[name])
    steps = {name: Step.of(models[name], settings[name]) for name in options.methods}
    records = []
    for name, step in tqdm(steps.items(), "counting bytes"):
        record = {"method": name, "shape": setting.shape.name, "dtype": setting.dtype}
        record |= {"tokens": setting.tokens, "layers": setting.shape.layers}
        record["rank"] = settings[name].rank if METHODS[name].adapter else None
        records.append(record | byte_counts(step.model, step.forward))
        step()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(options.repeats), "timing, rounds"):
        for name, spent in harness.alternate(steps, 1).items():
            seconds[name] += spent
    del models, steps, base, step
    for record in tqdm(records, "peaks"):
        name = record["method"]
        record["seconds"] = harness.summary(seconds[name])
        record["to_qlora"] = ratio(seconds[name], seconds[QLORA])
        record["rise"] = peak_bytes(options.device, unpooled, prepared, name, settings[name])
    return records


def caption(records: list[dict[str, Any]], options: argparse.Namespace) -> str:
    shape = SHAPES[options.shape]
    return (
        f"Random weights; {shape.name}: {records[0]['layers']} layers, width {shape.width}, "
        f"{shape.inner} inside, {shape.heads} heads, {shape.kv_heads} for keys and values, "
        f"{records[0]['dtype']} where not in 4 bits, adapters in float32; {options.tokens} tokens "
        f"in sequences of at most {LENGTH}. Every linear layer is adapted, with rank "
        f"{options.rank}; '{EQUAL}' is the QDoTA that trains nearest to as many values as QLoRA. "
        "A step is forward and backward, without the optimizer."
    )
