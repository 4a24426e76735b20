"""Parameters against held-out loss where the experts of a mixture are adapted.

    python benchmarks/experts_text.py --text KNOWN KNOWN NEW

A small mixture of experts is trained on the first texts, byte by byte, and adapted to the last in
rot13, as rates.py does with a small Llama; here the experts alone are adapted. Every method and
size has the same rates, and its best one counts. Runs are lines; finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from typing import Any

import harness
import torch
from expert_methods import METHODS, PEFT, config
from peft import get_peft_model
from rate_tasks import CONTEXT, of_bytes
from rates import RESULTS, add_arguments, complete, lines, step
from text_tasks import Task
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS, TOP, STEPS = 16, 2, 120
RATES = (3e-3, 1e-2, 3e-2)


def mixture(width: int, depth: int) -> nn.Module:
    """A mixture of experts of bytes."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=width,
            moe_intermediate_size=width * 2 // 3 // 8 * 8,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP,
            norm_topk_prob=True,
            num_hidden_layers=depth,
            num_attention_heads=max(width // 32, 2),
            num_key_value_heads=max(width // 32, 2),
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
    )


def run(task: Task, case: dict[str, Any]) -> dict[str, Any]:
    """Train one adapter, and measure the loss on bytes that were not trained on."""
    model = copy.deepcopy(task.base, {id(weight): weight for weight in task.base.parameters()})
    torch.manual_seed(case["seed"])
    model = get_peft_model(model, config(case["method"], case["size"])).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=case["rate"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 5) * (1 - step / case["steps"])
    )
    began, after = time.perf_counter(), None
    for batch in itertools.islice(task.batches(case["seed"]), case["steps"]):
        if not step(model, batch, optimizer):
            break
        schedule.step()
    else:
        found = task.test(model)[0]
        after = found if math.isfinite(found) else None
    parameters = sum(weight.numel() for weight in weights)
    seconds = time.perf_counter() - began
    return {**case, "parameters": parameters, "after": after, "seconds": seconds}


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for seed, (method, (_, sizes)) in itertools.product(options.seeds, METHODS.items()):
        if method != "LoRA, declared":  # the same function as PEFT's
            for size, rate in itertools.product(sizes, options.rates):
                case = {"method": method, "size": size, "rate": rate, "seed": seed}
                found.append(case | {"steps": options.steps})
    return found


def records(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a method and size: the gain at the rate with the largest mean, by seed."""
    rows = []
    for method, (_, sizes) in METHODS.items():
        for size in sizes:
            mine = [f for f in found if (f["method"], f["size"]) == (method, size)]
            gains: dict[float, dict[int, float]] = {}
            for line in mine:
                fallen = 0.0 if line["after"] is None else line["before"] - line["after"]
                gains.setdefault(line["rate"], {})[line["seed"]] = fallen
            if gains:
                rate, best = max(gains.items(), key=lambda g: statistics.mean(g[1].values()))
                row = {"method": method, "size": size, "parameters": mine[0]["parameters"]}
                row |= {"rate": rate, "gain": statistics.mean(best.values())}
                rows.append(row | {"gains": best, "before": mine[0]["before"]})
    return rows


def fewer(rows: list[dict[str, Any]], row: dict[str, Any]) -> float | None:
    """How many times as many parameters the smallest LoRA for each expert has that gains as much.

    Between the sizes that were run, gains are interpolated in the logarithm of the size.
    """
    rival = sorted((r["gain"], math.log(r["parameters"])) for r in rows if r["method"] == PEFT)
    if not rival or not rival[0][0] <= row["gain"] <= rival[-1][0]:
        return None
    for (low, small), (high, large) in itertools.pairwise(rival):
        if row["gain"] <= high:
            at = small + (large - small) * (row["gain"] - low) / (high - low)
            return math.exp(at) / row["parameters"]
    return None


def table(rows: list[dict[str, Any]]) -> str:
    header = ["method", "size", "parameters", "best rate", "gain, nats", "least to most"]
    header += ["LoRA's parameters for that gain / own"]
    cells = []
    for row in rows:
        times, gains = fewer(rows, row), sorted(row["gains"].values())
        less = row["gain"] < min(r["gain"] for r in rows if r["method"] == PEFT)
        cells.append(
            [row["method"], f"{row['size']}", f"{row['parameters']:,}", f"{row['rate']:g}"]
        )
        cells[-1] += [f"{row['gain']:.3f}", f"{gains[0]:.3f} to {gains[-1]:.3f}"]
        shown = "below its smallest" if less else "above its largest"
        cells[-1].append(f"{times:.1f}" if times else shown)
    return harness.table(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[*RATES])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.set_defaults(widths=[128], depths=[4], seeds=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.output or RESULTS / "experts_text.jsonl"
    if not options.report:
        task = of_bytes(options.text, options.widths[0], options.depths[0], mixture)
        complete(task, cases(options), path, run)
    found = lines(path)
    rows, about = records(found), harness.machine(["tnlib", "torch", "transformers", "peft"])
    caption = (
        f"{about['cpu']}, {about['cores']} cores; float32. A mixture of {EXPERTS} experts, {TOP} a "
        f"token, width 128, 4 layers, trained on bytes of two novels and adapted to a third in "
        f"rot13 by its experts alone: {found[0]['steps']} steps of AdamW without decay, five of "
        "warm-up, then linearly to zero. Gain: fall of the loss on bytes not trained on, from "
        f"{rows[0]['before']:.3f} nats, the mean over seeds {sorted(rows[0]['gains'])} at the best "
        f"of the rates {sorted({line['rate'] for line in found})}. The last column is how many "
        "parameters a LoRA of every expert has that gains as much, interpolated between its sizes, "
        f"in units of the method's. {sum(line['seconds'] for line in found) / 3600:.1f} hours."
    )
    harness.report(path.with_suffix(".json"), about, rows, f"{caption}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
