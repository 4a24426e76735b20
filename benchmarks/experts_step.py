"""A training step of a mixture whose experts are adapted: PEFT's LoRA of parameters, and ours.

    python benchmarks/experts_step.py [--implementations grouped_mm eager]

The model has random weights. A step is a forward and a backward pass; that of the frozen model has
the gradient by its inputs. All methods run in one process, once a round each; the peak of every one
is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from expert_methods import METHODS, PEFT, config
from peft import get_peft_model
from rates import RESULTS
from step_memory import PRELOAD, saved_bytes, trim_memory
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS, TOP, WIDTH, INNER, LAYERS, TOKENS = 128, 8, 512, 192, 4, 512
FROZEN = "frozen"
SIZES = {"LoRETTA rep": 5, "DoTA, random start": 4}


def base_model(implementation: str) -> nn.Module:
    """A frozen mixture with random weights."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=256,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            moe_intermediate_size=INNER,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=64,
        )
    )
    model.set_experts_implementation(implementation)
    return model.requires_grad_(False)


def adapted(base: nn.Module, method: str) -> nn.Module:
    """The model with an adapter; weights are those of `base`."""
    model = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    if method == FROZEN:
        return model
    return get_peft_model(model, config(method, SIZES.get(method, 8)))


def forward(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH, generator=generator)
    trained = any(weight.requires_grad for weight in model.parameters())
    return model(inputs_embeds=x.requires_grad_(not trained), use_cache=False).logits


def step(model: nn.Module) -> None:
    """A forward and a backward pass."""
    model.train()
    forward(model).square().mean().backward()
    for weight in model.parameters():
        weight.grad = None


def prepared(method: str, implementation: str) -> Callable[[], None]:
    """A step that was done once, for the measurement of its peak."""
    model = adapted(base_model(implementation), method)
    step(model)
    trim_memory()
    return partial(step, model)


def measure(implementation: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    base = base_model(implementation)
    models = {name: adapted(base, name) for name in (FROZEN, *METHODS)}
    runs = {name: partial(step, model) for name, model in models.items()}
    for run in runs.values():
        run()
    seconds = harness.alternate(runs, options.repeats, math.inf)
    rows = []
    for name, model in models.items():
        rival = zip(seconds[name], seconds[PEFT], strict=True)
        row = {"implementation": implementation, "method": name}
        row |= {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        row |= {"seconds": harness.summary(seconds[name])}
        row |= {"to_peft": statistics.median(own / other for own, other in rival)}
        row |= {"saved": saved_bytes(model, partial(forward, model))}
        row |= {"peak": harness.peak_memory(prepared, name, implementation, preload=PRELOAD)}
        rows.append(row)
    frozen = rows[0]
    for row in rows:
        for key in ("saved", "peak"):
            known = row[key] is not None and frozen[key] is not None
            row[f"{key}_rise"] = row[key] - frozen[key] if known else None
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    header = ["experts", "method", "parameters", "ms / step", "to LoRA (peft)"]
    header += ["saved, MB", "of LoRA's rise", "peak, MB", "of LoRA's rise"]
    cells = []
    for row in rows:
        rival = next(
            r for r in rows if r["method"] == PEFT and r["implementation"] == row["implementation"]
        )
        cells.append([row["implementation"], row["method"], f"{row['parameters']:,}"])
        cells[-1] += [f"{1000 * row['seconds']['median']:,.0f}", f"{row['to_peft']:.2f}"]
        for key in ("saved", "peak"):
            own, other = row[f"{key}_rise"], rival[f"{key}_rise"]
            cells[-1] += [f"{row[key] / 1e6:,.0f}" if row[key] is not None else ""]
            cells[-1] += [f"{own / other:.1%}" if own is not None and other else ""]
    return harness.table(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--implementations", nargs="+", default=["grouped_mm", "eager"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for name in options.implementations for row in measure(name, options)]
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    caption = (
        f"{about['cpu']}, {about['cores']} cores, {options.threads} threads; float32. {EXPERTS} "
        f"experts, {TOP} a token, width {WIDTH}, experts' width {INNER}, {LAYERS} layers, {TOKENS} "
        "tokens; all experts adapted in both projections, rank 8 (rep: 5, DoTA: 4). Ratios are "
        "medians inside a round. Saved: what the forward pass keeps for the backward pass; peak: "
        "what a step needs beside the model. Rise: what is more than that of the frozen model."
    )
    page = f"{caption}\n\n{table(rows)}\n"
    harness.report(RESULTS / "experts_step.json", about, rows, page)


if __name__ == "__main__":
    main()
