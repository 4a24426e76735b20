"""Every adapter method and PEFT's LoRA, trained on two real tasks side by side.

    python benchmarks/fine_tuning.py --model FOLDER --text FILE

"sentiment" is the demo's: MiniLM on film-review sentences, fetched once into the demo's cache.
"language" is a causal model, FOLDER as transformers saves it, on a text, FILE (.txt or .txt.gz).
All methods have one learning rate, LoRA's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from text_tasks import BATCH, HELD_OUT, TOKENS, Batch, DemoError, Task, film_reviews, novel
from tqdm import tqdm

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, NetworkConfig, count

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from sentiment import adapter_bytes, learning_rate_factor
from task import positive, silence

RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
LORA = "LoRA (peft)"
# Ranks, targets and starts are the configurations' defaults; only LoRA's alpha is not. With that of
# rank 1 a step moves the update as far as with rank 8.
METHODS: dict[str, Callable[..., PeftConfig]] = {
    "DoTA": DoTAConfig,
    "DoTA, random start": partial(DoTAConfig, init_weights="random"),
    "LoTR": LoTRConfig,
    "LoRTA": LoRTAConfig,
    "LoRETTA rep": partial(LoRETTAConfig, variant="rep"),
    "LoRETTA adp": partial(LoRETTAConfig, variant="adp"),
    LORA: partial(LoraConfig, r=8, lora_alpha=16),
    "LoRA, rank 1 (peft)": partial(LoraConfig, r=1, lora_alpha=6),
}
# The best for LoRA: for sentiment of three in runs of 30 steps, by loss on validation data; for
# language of the five of rates.py.
RATES = {"sentiment": 1e-2, "language": 1e-2}
# Okabe and Ito's palette, as in the demo's picture, and a marker each for print without colour.
COLORS = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#000000", "#777777"]


def adapted(task: Task, method: str, seed: int) -> PeftModel:
    """A model with new adapters; its frozen weights are the base's own, not a copy."""
    model = copy.deepcopy(task.base, {id(weight): weight for weight in task.base.parameters()})
    torch.manual_seed(seed)
    return get_peft_model(model, METHODS[method](task_type=task.kind))


def sizes(task: Task, method: str, model: PeftModel) -> dict[str, int]:
    """Trained parameters by what they are; they have to be what peft and the declaration count."""
    found = {"adapter": 0, "norms": 0, "head": 0}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            head = ".classifier." in name or ".score." in name
            part = "adapter" if ".modules_to_save." not in name else "head" if head else "norms"
            found[part] += weight.numel()
    total, config = sum(found.values()), METHODS[method](task_type=task.kind)
    counts = {total, model.get_nb_trainable_parameters()[0]}
    if isinstance(config, NetworkConfig):
        declared = count(task.base, config)
        counts |= {declared.total, total - found["adapter"] + declared.adapter}
    if len(counts) > 1:
        raise RuntimeError(f"{method}, {task.name}: trained parameters are counted as {counts}")
    return found


def stepper(model: PeftModel, batches: list[Batch], rate: float, bar: tqdm) -> Callable[[], None]:
    """A function that does the next step of training, as the demo does."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    factor = partial(learning_rate_factor, steps=len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    following = iter(batches)

    def step() -> None:
        model.train()
        model(**next(following)).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        bar.update()

    return step


def train(
    task: Task, models: dict[str, PeftModel], rates: dict[str, float], steps: int, seed: int
) -> dict[str, list[float]]:
    """Train models side by side, a step each in turn on the same batch; seconds of the steps."""
    batches = list(itertools.islice(task.batches(seed), steps))
    with tqdm(total=steps * len(models), desc=f"{task.name}, steps") as bar:
        step = {n: stepper(m, batches, rates[n], bar) for n, m in models.items()}
        return harness.alternate(step, steps, patience=math.inf)


def measure(make: Callable[[int], Task], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a method, with a run for every seed."""
    records: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in options.seeds:
        task = make(seed)
        models = {name: adapted(task, name, seed) for name in METHODS}
        rates = dict.fromkeys(METHODS, RATES[task.name])
        if not records:
            for name, model in models.items():
                records[name] = {"task": task.name, "method": name, "rate": rates[name]}
                records[name] |= sizes(task, name, model) | {"bytes": adapter_bytes(model)}
                records[name]["runs"] = []
        before = task.test(task.base)[0]  # every method starts as the base
        for name, spent in train(task, models, rates, options.steps, seed).items():
            seconds[name] += spent
        for name, model in tqdm(models.items(), f"{task.name}, seed {seed}, loss after"):
            after, accuracy = task.test(model)
            run = {"seed": seed, "before": before, "after": after, "accuracy": accuracy}
            records[name]["runs"].append(run)
    for name, record in records.items():
        record["gain"] = gains(record["runs"], records[LORA]["runs"])
        record["seconds"] = harness.summary(seconds[name])
    return list(records.values())


def gains(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """The fall of the loss in units of the other runs' with the same seeds."""
    pairs = zip(runs, others, strict=True)
    return [
        (run["before"] - run["after"]) / (other["before"] - other["after"]) for run, other in pairs
    ]


def table(records: list[dict[str, Any]]) -> str:
    header = ["task", "method", "rate", "adapter", "norms", "head", "file kB", "loss before"]
    header += ["after", "gain", "accuracy", "s / step"]
    rows = []
    for r in records:
        rows.append([r["task"], r["method"], f"{r['rate']:g}"])
        rows[-1] += [f"{r[part]:,}" for part in ("adapter", "norms", "head")]
        rows[-1] += [f"{r['bytes'] / 1000:,.0f}"]
        rows[-1] += [spread([run[key] for run in r["runs"]], ".4f") for key in ("before", "after")]
        rows[-1] += [spread(r["gain"], ".2f")]
        rows[-1] += [spread([run["accuracy"] for run in r["runs"]], ".1%")]
        rows[-1] += [f"{r['seconds']['median']:.3f}"]
    return harness.table(header, rows)


def spread(values: list[float | None], form: str) -> str:
    """The median, and the lowest and the highest value in brackets."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    shown = [format(value, form) for value in (statistics.median(known), known[0], known[-1])]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def caption(about: dict[str, Any], options: argparse.Namespace) -> str:
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; float32. Sentiment: "
        f"MiniLM, {options.steps} steps of 32 film-review sentences. Language: "
        f"{options.model.name}, {options.steps} steps of {BATCH} chunks of {TOKENS} tokens of "
        f"{options.text.name}. Loss (nats) and accuracy (known to about two points) are on data "
        f"neither trained nor tuned on: the demo's test sentences, the last {HELD_OUT} chunks. "
        f"Seeds {', '.join(map(str, options.seeds))}: medians, and the least and the most in "
        "brackets. A seed is that of the adapter's start, of the order of the batches and of the "
        "classifier's head. Gain: fall of the loss in units of LoRA's with the same seed. Every "
        "method at its default rank and targets (LoRA: r=8, alpha=16; rank 1: alpha=6), so sizes "
        "differ. All have the rate that is best for LoRA of rank 8: for sentiment of three in runs "
        "of 30 steps, for language of five. All models of a task are trained side by side, one "
        "step each in turn on the same batch; seconds are medians of these steps. DoTA's file also "
        "has the cores it started from."
    )


def picture(records: list[dict[str, Any]], path: Path) -> None:
    """Held-out loss after training against the number of trained parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.8), dpi=150, layout="constrained")
    for axes, task in zip(figure.subplots(1, 2, sharex=True), RATES, strict=True):
        mine = [r for r in records if r["task"] == task]
        before = statistics.median(run["before"] for run in mine[0]["runs"])
        axes.axhline(before, color="gray", linestyle="--", label="before training")
        for r, (color, marker) in zip(mine, zip(COLORS, "osv^DP*X", strict=True), strict=True):
            losses = [run["after"] for run in r["runs"]]
            middle = statistics.median(losses)
            reach = [[middle - min(losses)], [max(losses) - middle]]
            style = {"color": color, "fmt": marker, "markersize": 9, "capsize": 3}
            if "random" in r["method"]:  # of DoTA's size: both are to be seen
                style |= {"markerfacecolor": "none", "markersize": 12, "capsize": 6}
            axes.errorbar(r["adapter"] + r["norms"], middle, reach, label=r["method"], **style)
        axes.set(xscale="log", xlabel="trained parameters, without the head")
        axes.set(ylabel="held-out loss (nats)", title=task)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def run(options: argparse.Namespace) -> None:
    """Measure and report."""
    text = novel(options.model, options.text)  # the same for every seed, and checked before work
    tasks = [film_reviews, lambda seed: text]
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    about |= {"threads": torch.get_num_threads()}
    # Names only: where the files are is this machine's business.
    about |= {key: getattr(value, "name", value) for key, value in vars(options).items()}
    records = [record for make in tasks for record in measure(make, options)]
    page = f"{caption(about, options)}\n\n{table(records)}\n"
    harness.report(options.output, about, records, page)
    picture(records, options.output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal model")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text, .gz or not")
    parser.add_argument("--steps", type=positive, default=40, help="of training (default 40)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run each (default 0 1 2)"
    )
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    silence()
    try:
        run(parser.parse_args())
    except DemoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
