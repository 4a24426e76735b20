"""Every adapter method and PEFT's LoRA, trained on two real tasks side by side.

    python benchmarks/fine_tuning.py --model FOLDER --text FILE [--tune]

"sentiment" is the demo's: MiniLM on film-review sentences, fetched once into the demo's cache.
"language" is a causal model, FOLDER as transformers saves it, on a text, FILE (.txt or .txt.gz).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, NetworkConfig, count

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sentiment as demo
from assets import DemoError, fetch
from sentences import read_sentences, split_by_review
from task import positive, silence

RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
TOKENS, BATCH, HELD_OUT = 128, 4, 32  # of the language task: chunk length, and numbers of chunks
# Ranks, targets and starts are the configurations' defaults; only LoRA's alpha is not.
METHODS: dict[str, Callable[..., PeftConfig]] = {
    "DoTA": DoTAConfig,
    "DoTA, random start": partial(DoTAConfig, init_weights="random"),
    "LoTR": LoTRConfig,
    "LoRTA": LoRTAConfig,
    "LoRETTA rep": partial(LoRETTAConfig, variant="rep"),
    "LoRETTA adp": partial(LoRETTAConfig, variant="adp"),
    "LoRA (peft)": partial(LoraConfig, r=8, lora_alpha=16),
}
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# Where --tune starts on GRID. For sentiment the best of three rates in runs of 30 steps, by loss on
# validation data; for language about a third of that, not tuned.
RATES = {
    "sentiment": dict(zip(METHODS, (1e-2, 3e-2, 3e-2, 3e-2, 1e-2, 1e-2, 1e-2), strict=True)),
    "language": dict(zip(METHODS, (3e-3, 1e-2, 1e-2, 1e-2, 3e-3, 3e-3, 3e-3), strict=True)),
}
# Okabe and Ito's palette, as in the demo's picture, and a marker each for print without colour.
COLORS = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#000000"]
Batch = dict[str, Tensor]
Score = tuple[float, float | None]


@dataclass(frozen=True)
class Task:
    """A frozen model, endless batches by seed, and loss (and accuracy) on data not trained on."""

    name: str
    base: nn.Module
    kind: TaskType
    batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[PeftModel], Score]
    test: Callable[[PeftModel], Score]


def film_reviews(options: argparse.Namespace) -> Task:
    """The demo's task: its encoder, sentences, split and order of batches."""
    source = demo.Source(str(fetch("minilm")))
    splits = split_by_review(read_sentences(fetch("vader-movies")))
    encoder = demo.make_encoder(source)
    torch.manual_seed(options.seed)
    base = demo.load_pretrained(AutoModelForSequenceClassification, source.model, num_labels=2)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # as in the demo
    lengths = [len(sentence.text) for sentence in splits.train]

    def batches(seed: int) -> Iterator[Batch]:
        for numbers in demo.batch_order(lengths, demo.Settings(0.0).batch_size, seed):
            inputs, labels = encoder([splits.train[i] for i in numbers])
            yield {**inputs, "labels": labels}

    validate = partial(demo.evaluate, encoder=encoder, sentences=splits.validation)
    test = partial(demo.evaluate, encoder=encoder, sentences=splits.test)
    return Task("sentiment", base, TaskType.SEQ_CLS, batches, validate, test)


def novel(options: argparse.Namespace) -> Task:
    """Chunks of a text: the last ones are the test, those before them validation."""
    if not (options.model / "config.json").is_file():
        raise DemoError(f"--model {options.model} is no folder with a config.json")
    base = demo.load_pretrained(AutoModelForCausalLM, str(options.model), dtype=torch.float32)
    chunks = read_chunks(options.text, options.model)
    if len(chunks) < 3 * HELD_OUT:
        raise DemoError(
            f"--text {options.text} has {len(chunks)} chunks; {3 * HELD_OUT} are needed"
        )
    return language(base, *chunks.split([len(chunks) - 2 * HELD_OUT, HELD_OUT, HELD_OUT]))


def language(base: nn.Module, training: Tensor, validation: Tensor, test: Tensor) -> Task:
    """A causal model on chunks of text."""

    def batches(seed: int) -> Iterator[Batch]:
        for numbers in demo.batch_order([TOKENS] * len(training), BATCH, seed):
            yield {"input_ids": training[numbers], "labels": training[numbers]}

    scores = [partial(chunk_loss, chunks=chunks) for chunks in (validation, test)]
    return Task("language", base, TaskType.CAUSAL_LM, batches, *scores)


def read_chunks(text: Path, model: Path) -> Tensor:
    """The tokens of a text in chunks, a row each; the rest is left out."""
    tokenizer = demo.load_pretrained(AutoTokenizer, str(model))
    tokens = tokenizer(read_text(text), return_tensors="pt").input_ids[0]
    return tokens[: len(tokens) // TOKENS * TOKENS].view(-1, TOKENS)


def read_text(path: Path) -> str:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read --text {path}: {error}") from error


@torch.inference_mode()
def chunk_loss(model: PeftModel, chunks: Tensor) -> Score:
    """Mean cross-entropy of the next token, in nats."""
    model.eval()
    losses = [model(input_ids=x, labels=x).loss.item() * len(x) for x in chunks.split(BATCH)]
    return sum(losses) / len(chunks), None


def adapted(task: Task, method: str, seed: int) -> PeftModel:
    """A model with new adapters; its frozen weights are the base's own, not a copy."""
    model = copy.deepcopy(task.base, {id(weight): weight for weight in task.base.parameters()})
    torch.manual_seed(seed)
    return get_peft_model(model, METHODS[method](task_type=task.kind))


def sizes(task: Task, method: str, model: PeftModel) -> dict[str, int]:
    """Trained values by what they are; they have to be what peft and the declaration count."""
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
        raise RuntimeError(f"{method}, {task.name}: trained values are counted as {counts}")
    return found


def stepper(model: PeftModel, batches: list[Batch], rate: float, bar: tqdm) -> Callable[[], None]:
    """A function that does the next step of training, as the demo does."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    factor = partial(demo.learning_rate_factor, steps=len(batches))
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
    task: Task, models: dict[str, PeftModel], rates: dict[str, float], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Train models side by side, a step each in turn on the same batch; seconds of the steps."""
    steps = options.steps
    batches = list(itertools.islice(task.batches(options.seed), steps))
    with tqdm(total=steps * len(models), desc=f"{task.name}, steps") as bar:
        step = {n: stepper(m, batches, rates[n], bar) for n, m in models.items()}
        return harness.alternate(step, steps, patience=math.inf)


def measure(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a method."""
    rates = RATES[task.name]
    models = {name: adapted(task, name, options.seed) for name in METHODS}
    kept = {name: sizes(task, name, model) for name, model in models.items()}
    scored = tqdm(models.items(), f"{task.name}, loss before")
    before = {name: task.test(model)[0] for name, model in scored}
    seconds = train(task, models, rates, options)
    records = []
    for name, model in tqdm(models.items(), f"{task.name}, loss after"):
        after, accuracy = task.test(model)
        record = {"task": task.name, "method": name, "rate": rates[name], **kept[name]}
        record |= {"bytes": demo.adapter_bytes(model), "before": before[name], "after": after}
        records.append(record | {"accuracy": accuracy, "seconds": harness.summary(seconds[name])})
    return records


def next_rate(losses: dict[float, float], start: float) -> float | None:
    """The start, then the neighbours of the best so far; None if both were tried."""
    best = GRID.index(min(losses, key=lambda rate: (losses[rate], rate), default=start))
    around = (GRID[best], *GRID[max(best - 1, 0) : best + 2])
    return next((rate for rate in around if rate not in losses), None)


def tune(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method's loss on validation data by rate, until no neighbour of the best is left."""
    tried: dict[str, dict[float, float]] = {name: {} for name in METHODS}
    while rates := {
        name: rate
        for name, losses in tried.items()
        if (rate := next_rate(losses, RATES[task.name][name])) is not None
    }:
        models = {name: adapted(task, name, options.seed) for name in rates}
        train(task, models, rates, options)
        for name, model in models.items():
            loss = task.validate(model)[0]
            tried[name][rates[name]] = loss if math.isfinite(loss) else math.inf
    return [
        {"task": task.name, "method": name, "best": min(losses, key=losses.__getitem__)}
        | {"validation": {f"{rate:g}": losses[rate] for rate in sorted(losses)}}
        for name, losses in tried.items()
    ]


def table(records: list[dict[str, Any]]) -> str:
    header = ["task", "method", "rate", "adapter", "norms", "head", "file kB", "loss before"]
    header += ["after", "accuracy", "s / step"]
    rows = [
        [r["task"], r["method"], f"{r['rate']:g}"]
        + [f"{r[part]:,}" for part in ("adapter", "norms", "head")]
        + [f"{r['bytes'] / 1000:,.0f}", f"{r['before']:.4f}", f"{r['after']:.4f}"]
        + ["" if r["accuracy"] is None else f"{r['accuracy']:.1%}"]
        + [f"{r['seconds']['median']:.3f}"]
        for r in records
    ]
    return harness.table(header, rows)


def caption(about: dict[str, Any], options: argparse.Namespace) -> str:
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; float32. Sentiment: "
        f"MiniLM, {options.steps} steps of 32 film-review sentences. Language: "
        f"{options.model.name}, {options.steps} steps of {BATCH} chunks of {TOKENS} tokens of "
        f"{options.text.name}. Loss (nats) and accuracy (known to about two points) are on data "
        f"neither trained nor tuned on: the demo's test sentences, the last {HELD_OUT} chunks. "
        f"Seed {options.seed} only. Every method at its default rank and targets (LoRA: r=8, "
        "alpha=16), so sizes differ. Rates: for sentiment the best of three in runs of 30 steps, "
        "by validation loss; for language about a third of that, not tuned. All models of a task "
        "are trained side by side, one step each in turn on the same batch; seconds are medians of "
        "these steps. DoTA's file also has the cores it started from."
    )


def picture(records: list[dict[str, Any]], path: Path) -> None:
    """Held-out loss after training against the number of trained values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.8), dpi=150, layout="constrained")
    for axes, task in zip(figure.subplots(1, 2, sharex=True), RATES, strict=True):
        mine = [r for r in records if r["task"] == task]
        axes.axhline(mine[0]["before"], color="gray", linestyle="--", label="before training")
        for r, (color, marker) in zip(mine, zip(COLORS, "osv^DP*", strict=True), strict=True):
            style = {"color": color, "marker": marker, "markersize": 9, "linestyle": "none"}
            axes.plot(r["adapter"] + r["norms"], r["after"], label=r["method"], **style)
        axes.set(xscale="log", xlabel="trained values, without the head")
        axes.set(ylabel="held-out loss (nats)", title=task)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def run(options: argparse.Namespace) -> None:
    """Measure, or tune, and report."""
    tasks = [film_reviews(options), novel(options)]
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    about |= {"threads": torch.get_num_threads()}
    # Names only: where the files are is this machine's business.
    about |= {key: getattr(value, "name", value) for key, value in vars(options).items()}
    if options.tune:
        found = [record for task in tasks for record in tune(task, options)]
        path = options.output.with_name(f"{options.output.stem}_rates.json")
        rows = [[*map(str, list(r.values())[:3]), str(r["validation"])] for r in found]
        text = harness.table(["task", "method", "best rate", "validation loss by rate"], rows)
        harness.report(path, about, found, text + "\n")
        return
    records = [record for task in tasks for record in measure(task, options)]
    text = f"{caption(about, options)}\n\n{table(records)}\n"
    harness.report(options.output, about, records, text)
    picture(records, options.output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal model")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text, .gz or not")
    parser.add_argument("--steps", type=positive, default=40, help="of training (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument(
        "--tune", action="store_true", help="only find rates, on validation data: *_rates.json"
    )
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    silence()
    try:
        run(parser.parse_args())
    except DemoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
