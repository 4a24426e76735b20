"""Seconds a token of greedy decoding, with adapters applied, cached and merged."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from step_models import FROZEN, LORA, METHODS, OURS, VOCABULARY, Setting, adapted, base_model, ratio
from torch import nn

import tnlib_adapters

PROMPT, NEW = 16, 32
CAPTION = (
    f"Greedy decoding of {NEW} tokens after a prompt of {PROMPT}, one at a time with a cache of "
    "keys and values, on the Llama shape with random weights and a language-model head of "
    f"{VOCABULARY} tokens. ms: median over rounds of a whole decoding, prompt included, divided by "
    f"{NEW}; ratio to the frozen model: median over rounds of the ratio inside a round. "
    "'cached' is inside `with tnlib_adapters.cached(model):`, entered once before; 'merged' "
    "after merge_and_unload()."
)


@torch.no_grad()
def decode(model: nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    """The prompt and the tokens after it."""
    tokens = prompt
    output = model(input_ids=tokens, use_cache=True)
    for _ in range(NEW - 1):
        latest = output.logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, latest], 1)
        output = model(input_ids=latest, past_key_values=output.past_key_values, use_cache=True)
    tokens = torch.cat([tokens, output.logits[:, -1:].argmax(-1)], 1)
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return tokens


def measure(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a method and way of applying it."""
    base = base_model(setting, head=True).eval()
    methods = [name for name in OURS if name in options.methods]
    prompt = torch.randint(VOCABULARY, (1, PROMPT), device=setting.device)
    ways: dict[tuple[str, str], nn.Module] = {(FROZEN, ""): base}
    with contextlib.ExitStack() as stack:
        for name in [LORA, *methods]:
            ways[name, "applied"] = adapted(base, name, setting)
            if not METHODS[name].merges:
                continue
            ways[name, "merged"] = adapted(base, name, setting, share=False).merge_and_unload()
            if name in OURS:
                ways[name, "cached"] = adapted(base, name, setting)
        for (_, way), model in ways.items():
            model.eval()
            if way == "cached":
                stack.enter_context(tnlib_adapters.cached(model))
        runs: dict[Any, Callable[[], Any]] = {
            key: partial(decode, model, prompt) for key, model in ways.items()
        }
        for call in runs.values():
            call()  # warm
        seconds = harness.alternate(runs, options.repeats)
    return [
        {
            "method": name,
            "way": way,
            "rank": setting.rank,
            "dtype": setting.dtype,
            "token": harness.summary([s / NEW for s in seconds[name, way]]),
            "to_frozen": ratio(seconds[name, way], seconds[FROZEN, ""]),
        }
        for name, way in ways
    ]


def table(records: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(r["rank"]),
            r["method"],
            r["way"],
            f"{1e3 * r['token']['median']:.2f}",
            f"{r['to_frozen']:.2f}",
        ]
        for r in records
    ]
    return harness.table(["rank", "method", "adapter is", "ms / token", "/ frozen"], rows)
