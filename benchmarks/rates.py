"""Loss against learning rate, for LoRA and every method, with and without rate scaling.

    python benchmarks/rates.py bytes --text KNOWN KNOWN NEW
    python benchmarks/rates.py sentiment
    python benchmarks/rates.py language --model FOLDER --text FILE
    python benchmarks/rates.py antibodies --model CHECKPOINT --text FASTA

"bytes" trains a small model on the first texts, and adapts it to the last one with every letter
moved by 13. "sentiment" and "language" are those of fine_tuning.py, "antibodies" is in
antibodies.py. Every run is a line of the output; what is there is not run again, so a benchmark
that was stopped goes on. The tables and the picture are made of all lines.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import rates_report
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rate_tasks import tasks
from text_tasks import Batch, Task
from torch import nn
from tqdm import tqdm

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, TTLoRAConfig

RESULTS = Path(__file__).parent / "results"
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def lora(r: int, rate_scaling: bool = False, **fields: Any) -> PeftConfig:
    return LoraConfig(r=r, lora_alpha=16, **fields)


def train(tt_rank: int, variant: str, **fields: Any) -> PeftConfig:
    return LoRETTAConfig(tt_rank=tt_rank, variant=variant, **fields)


# A method with its sizes, of which the second is the usual one.
METHODS: dict[str, tuple[Callable[..., PeftConfig], tuple[int, int, int]]] = {
    "LoRA (peft)": (lora, (1, 8, 32)),
    "LoTR": (lambda r, **k: LoTRConfig(r=r, **k), (2, 8, 32)),
    "LoRTA": (lambda r, **k: LoRTAConfig(r=r, **k), (2, 8, 64)),
    "LoRETTA rep": (partial(train, variant="rep"), (2, 5, 16)),
    "LoRETTA adp": (partial(train, variant="adp"), (2, 5, 16)),
    "TT-LoRA": (lambda r, **k: TTLoRAConfig(r=r, **k), (2, 8, 32)),
    "DoTA": (lambda r, **k: DoTAConfig(r=r, **k), (2, 8, 32)),
    "DoTA, random start": (
        lambda r, **k: DoTAConfig(r=r, init_weights="random", **k),
        (2, 8, 32),
    ),
}


def run(task: Task, case: dict[str, Any]) -> dict[str, Any]:
    """Train one adapter, and measure the loss on data that were not trained on."""
    make, _ = METHODS[case["method"]]
    fields: dict[str, Any] = {"task_type": task.kind, "rate_scaling": case["scaled"]}
    if case["targets"]:
        fields["target_modules"] = case["targets"]
    model = copy.deepcopy(task.base, {id(weight): weight for weight in task.base.parameters()})
    began = time.perf_counter()
    torch.manual_seed(case["seed"])
    model = get_peft_model(model, make(case["size"], **fields)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=case["rate"], weight_decay=0.0)
    steps = case["steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 5) * (1 - step / steps)
    )
    result = {**case, "parameters": sum(weight.numel() for weight in weights), "after": None}
    for batch in itertools.islice(task.batches(case["seed"]), steps):
        if not step(model, batch, optimizer):
            break
        schedule.step()
    else:
        after = task.test(model)[0]
        result["after"] = after if math.isfinite(after) else None
    return result | {"seconds": time.perf_counter() - began}


def step(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> bool:
    """A step of training; False where the loss is not finite any more."""
    loss = model(**batch).loss
    if not math.isfinite(loss.item()):
        return False
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return True


def cases(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs that the options ask for, the same seed of all methods one after another."""
    found = []
    for seed, name in itertools.product(options.seeds, options.methods):
        sizes = METHODS[name][1]
        for size in options.ranks or (sizes if options.sizes == "all" else sizes[1:2]):
            scalings = [False] if name.startswith("LoRA") else [s == "after" for s in options.when]
            for scaled, rate in itertools.product(scalings, options.rates):
                case = {"task": task.name, "method": name, "size": size, "scaled": scaled}
                case |= {"rate": rate, "seed": seed, "steps": options.steps}
                found.append(case | {"targets": "all-linear" if options.task == "bytes" else None})
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def complete(
    task: Task, todo: list[dict[str, Any]], path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    """Do the runs of a task that have no line yet."""
    known, before = lines(path), task.test(task.base)[0]
    for case in tqdm(todo, desc=task.name):
        if not any(all(line[name] == case[name] for name in case) for line in known):
            line = run(task, case) | {"before": before}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks whose runs are lines."""
    parser.add_argument("--model", type=Path, help="folder of a causal model, or a checkpoint")
    parser.add_argument(
        "--text", type=Path, nargs="+", help="UTF-8 texts, .gz or not, or sequences"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64])
    parser.add_argument("--depths", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="file of lines, *.jsonl")
    parser.add_argument("--report", action="store_true", help="only make tables of the lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("bytes", "sentiment", "language", "antibodies"))
    add_arguments(parser)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--sizes", choices=("all", "usual"), default="usual")
    parser.add_argument("--ranks", type=int, nargs="+", help="sizes of every method, if not those")
    parser.add_argument("--rates", type=float, nargs="+", default=GRID)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--when", nargs="+", default=["before", "after"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.output or RESULTS / f"rates_{options.task}.jsonl"
    for task in () if options.report else tasks(options):
        complete(task, cases(task, options), path, run)
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    rates_report.write(path, lines(path), about)


if __name__ == "__main__":
    main()
