"""Where the cores start: published starts, others, and starts from the first gradients.

    python benchmarks/starts.py bytes --text KNOWN KNOWN NEW
    python benchmarks/starts.py language --model FOLDER --text FILE

Tasks and lines are those of rates.py. The loss is measured after some steps of one run at a rate
that stays after five steps of warm-up. Every start has the same rates, and its best one counts.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import harness
import starts_report
import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from rate_tasks import tasks
from rates import RESULTS, add_arguments, complete, lines, step
from text_tasks import Batch, Task
from torch import Tensor, nn

from tnlib_adapters import (
    DoTAConfig,
    LoRETTAConfig,
    LoRTAConfig,
    LoTRConfig,
    TTLoRAConfig,
    start_from_gradients,
    zeros,
)

# Batches of which the gradients, or the activations of PEFT's starts, are taken; and the file's.
SEEN = 4
STEPS = (20, 40, 120)


class Orthonormal(LoTRConfig):
    """LoTR with orthonormal shared factors of the usual size."""

    def initial_cores(self, network: Any, *args: Any) -> dict[str, Tensor]:
        cores = super().initial_cores(network, *args)
        return {k: torch.linalg.qr(core)[0] if core.any() else core for k, core in cores.items()}


class NearOne(LoRTAConfig):
    """LoRTA whose small factors are near one number, of the usual size, plus a tenth of noise."""

    def initial_cores(self, network: Any, *args: Any) -> dict[str, Tensor]:
        cores = super().initial_cores(network, *args)
        for key, core in cores.items():
            if key.startswith("c_"):
                cores[key] = math.sqrt(2 / self.r) * (1 + 0.1 * torch.randn_like(core))
        return cores


class OtherEnd(LoRETTAConfig):
    """LoRETTA rep whose first core is zero instead of the last."""

    def network(self, site: Any) -> Any:
        network = dataclasses.replace(self, init="gaussian")._declared(site)
        first, *others = network.cores
        cores = (dataclasses.replace(first, initializer=zeros), *others)
        return dataclasses.replace(network, cores=cores)

    def _declared(self, site: Any) -> Any:
        return super().network(site)


def rep(kind: type[LoRETTAConfig] = LoRETTAConfig, **more: Any) -> Callable[..., Any]:
    return lambda r, **k: kind(tt_rank=r, dropout=0.0, train_norms=False, **more, **k)


def lora(**more: Any) -> Callable[..., Any]:
    return lambda r, **k: LoraConfig(r=r, lora_alpha=16, **more, **k)


def random_dota(r: int, **fields: Any) -> DoTAConfig:
    return DoTAConfig(r=r, init_weights="random", **fields)


# A method, its start, how it is made, and its sizes.
STARTS: list[tuple[str, str, Callable[..., Any], tuple[int, ...]]] = [
    ("LoRA", "default", lora(), (1, 8)),
    ("LoRA", "gradients", lora(), (1, 8)),
    ("LoRA", "EVA (peft)", lora(init_lora_weights="eva"), (1, 8)),
    ("LoRA", "LoRA-GA (peft)", lora(init_lora_weights="lora_ga"), (1, 8)),
    ("LoTR", "default", lambda r, **k: LoTRConfig(r=r, **k), (8, 16, 32)),
    ("LoTR", "orthonormal", lambda r, **k: Orthonormal(r=r, **k), (16,)),
    ("LoTR", "gradients", lambda r, **k: LoTRConfig(r=r, **k), (8, 16, 32)),
    ("LoRTA", "default", lambda r, **k: LoRTAConfig(r=r, **k), (8, 32, 64)),
    ("LoRTA", "near one", lambda r, **k: NearOne(r=r, **k), (32,)),
    ("LoRTA", "gradients", lambda r, **k: LoRTAConfig(r=r, **k), (8, 32, 64)),
    ("LoRETTA rep", "default", rep(), (2, 5, 16)),
    ("LoRETTA rep", "published", rep(init="gaussian"), (5,)),
    ("LoRETTA rep", "first core zero", rep(OtherEnd), (5,)),
    ("LoRETTA rep", "gradients", rep(), (2, 5, 16)),
    ("TT-LoRA", "default", lambda r, **k: TTLoRAConfig(r=r, **k), (8,)),
    ("TT-LoRA", "gradients", lambda r, **k: TTLoRAConfig(r=r, **k), (8,)),
    ("DoTA", "pretrained", lambda r, **k: DoTAConfig(r=r, **k), (8,)),
    ("DoTA", "random", random_dota, (8,)),
    ("DoTA", "gradients", random_dota, (8,)),
]


def changes_base(case: dict[str, Any]) -> bool:
    """Whether a start subtracts its update from the weights."""
    return "GA" in case["start"]


def started(model: nn.Module, task: Task, case: dict[str, Any]) -> tuple[PeftModel, dict]:
    """A model of the task with an adapter, and what its start took and holds."""
    seen: list[Batch] = [*itertools.islice(task.batches(case["seed"]), SEEN)]
    fields: dict[str, Any] = {"task_type": task.kind}
    if case["targets"]:
        fields["target_modules"] = case["targets"]
    torch.manual_seed(case["seed"])
    make = next(make for *names, make, _ in STARTS if names == [case["method"], case["start"]])
    config, about = make(case["size"], **fields), {}
    began = time.perf_counter()
    if changes_base(case):
        config.lora_ga_config = LoraGAConfig()

        def backward() -> None:
            for batch in seen:
                model(**batch).loss.backward()

        preprocess_loraga(model, config, backward)
        model.zero_grad()
    adapted = get_peft_model(model, config)
    if "EVA" in case["start"]:
        initialize_lora_eva_weights(adapted, seen, show_progress_bar=False)
    if case["start"] == "gradients":
        about["held"] = start_from_gradients(adapted, seen, progressbar=False).held
    return adapted, about | {"start_seconds": time.perf_counter() - began}


def run(task: Task, case: dict[str, Any]) -> dict[str, Any]:
    """Train one adapter, and measure the loss after some steps on data not trained on."""
    shared = {id(weight): weight for weight in task.base.parameters()}
    base = copy.deepcopy(task.base, {} if changes_base(case) else shared)
    model, about = started(base, task, case)
    weights = [weight for weight in model.train().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=case["rate"], weight_decay=0.0)
    losses: dict[str, float | None] = {}
    batches = itertools.islice(task.batches(case["seed"]), max(case["steps"]))
    for number, batch in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = case["rate"] * min(1, number / 5)
        if not step(model, batch, optimizer):
            break
        if number in case["steps"]:
            after = task.test(model)[0]
            losses[str(number)] = after if math.isfinite(after) else None
            model.train()
    parameters = sum(weight.numel() for weight in weights)
    return {**case, **about, "parameters": parameters, "losses": losses}


def cases(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for seed, (method, start, _, sizes) in itertools.product(options.seeds, STARTS):
        usual = sizes if options.sizes == "all" else sizes[(len(sizes) - 1) // 2 :][:1]
        for size, rate in itertools.product(usual, options.rates):
            case = {"task": task.name, "method": method, "start": start, "size": size}
            case |= {"rate": rate, "seed": seed, "steps": options.steps}
            case |= {"targets": options.targets}
            if not options.methods or method in options.methods:
                found.append(case)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("bytes", "language"))
    add_arguments(parser)
    parser.add_argument("--methods", nargs="+", help="by default all")
    parser.add_argument("--targets", nargs="+", help="names of layers, by default the method's")
    parser.add_argument("--sizes", choices=("all", "usual"), default="all")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2])
    parser.add_argument("--steps", type=int, nargs="+", default=[*STEPS])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.output or RESULTS / f"starts_{options.task}.jsonl"
    for task in () if options.report else tasks(options):
        complete(task, cases(task, options), path, run)
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    order = [(method, start) for method, start, *_ in STARTS]
    found = sorted(lines(path), key=lambda line: order.index((line["method"], line["start"])))
    starts_report.write(path, found, about)


if __name__ == "__main__":
    main()
