"""What a training step, or with --decode a decoded token, costs with every adapter method.

    python benchmarks/training_step.py [--shape llama] [--tokens 512] [--ranks 8] [--decode]

Models are made from configurations with random weights, frozen and shared by all methods. A step
is a forward and a backward pass. All methods of one shape, number of tokens and rank run in one
process, once a round each; the ratio to the frozen model and to LoRA is the median over the rounds
of the ratio inside a round, which drift of the machine does not reach. A full run writes
results/training_step.*; a run with a choice writes results/training_step_part.*, or --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import step_decoding
import torch
from step_memory import optimizer_bytes, peak_bytes, prepared, saved_bytes
from step_models import (
    FROZEN,
    LENGTH,
    LORA,
    METHODS,
    PEERS,
    SHAPES,
    Setting,
    Step,
    adapted,
    base_model,
    kept_bytes,
    ratio,
    trained,
)
from step_picture import picture
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
TOKENS, RANKS = [64, 512, 4096], [4, 8, 16, 64]


def chosen(options: argparse.Namespace, *, first: bool) -> list[str]:
    """The frozen model, LoRA and the methods to measure; those without a rank once only."""
    names = [name for name in METHODS if name in {*options.methods, LORA}]
    return [FROZEN, *(name for name in names if first or METHODS[name].ranked)]


def settings(options: argparse.Namespace) -> list[Setting]:
    shapes = ["llama", "bert"] if options.shape == "both" else [options.shape]
    if options.device == "cuda":
        shapes.append("llama-7b")
    return [
        Setting.of(shape, options.layers, tokens, rank, options)
        for shape in shapes
        for tokens in options.tokens
        for rank in options.ranks
    ]


def measure(setting: Setting, options: argparse.Namespace, bar: tqdm) -> list[dict[str, Any]]:
    """One record a method, of one shape, number of tokens and rank."""
    base = base_model(setting)
    names = chosen(options, first=setting.rank == options.ranks[0])
    models = {name: adapted(base, name, setting) for name in names}
    steps = {name: Step.of(model, setting) for name, model in models.items()}
    records = {}
    for name, step in steps.items():
        step()  # warm
        records[name] = {
            "shape": setting.shape.name,
            "tokens": setting.tokens,
            "rank": setting.rank if name in METHODS and METHODS[name].ranked else None,
            "dtype": setting.dtype,
            "method": name,
            "trained": sum(weight.numel() for weight in trained(step.model)),
            "kept": kept_bytes(step.model, base),
            "optimizer": optimizer_bytes(step.model),
            "saved": saved_bytes(step.model, step.forward),
        }
    seconds = harness.alternate(steps, options.repeats)
    for name, record in records.items():
        mine = seconds[name]
        record["seconds"] = harness.summary(mine)
        record["to_frozen"] = ratio(mine, seconds[FROZEN])
        peer = PEERS.get(name, LORA)
        record["to_lora"] = ratio(mine, seconds[peer]) if peer in seconds else None
    del models, steps, base
    for name, record in records.items():
        peak = peak_bytes(setting.device, prepared, name, setting) if options.peak else None
        record["peak"] = peak
        bar.update()
    return list(records.values())


def table(records: list[dict[str, Any]]) -> str:
    header = ["model", "tokens", "rank", "method", "trained", "ms / step", "/ frozen", "/ LoRA"]
    header += ["saved MB", "peak MB", "kept MB", "AdamW MB"]
    rows = [
        [r["shape"], str(r["tokens"]), str(r["rank"] or ""), r["method"], f"{r['trained']:,}"]
        + [f"{1e3 * r['seconds']['median']:.1f}", f"{r['to_frozen']:.2f}"]
        + ["" if r["to_lora"] is None else f"{r['to_lora']:.2f}"]
        + ["" if r[part] is None else f"{r[part] / 1e6:.1f}" for part in ("saved", "peak", "kept")]
        + [f"{r['optimizer'] / 1e6:.2f}"]
        for r in records
    ]
    return harness.table(header, rows)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    about |= {"threads": torch.get_num_threads()}
    if options.device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
    return about | {k: v for k, v in vars(options).items() if k != "output"}


def hardware(about: dict[str, Any]) -> str:
    cpu = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads"
    return f"{about['gpu']} ({cpu})" if "gpu" in about else cpu


def caption(about: dict[str, Any], records: list[dict[str, Any]]) -> str:
    used = dict.fromkeys((r["shape"], r["dtype"]) for r in records)
    layers = about["layers"]
    shapes = "; ".join(
        f"{name}: {SHAPES[name].layers if layers is None or SHAPES[name].dtype else layers} "
        f"layers, width {SHAPES[name].width}, {SHAPES[name].inner} inside, {SHAPES[name].heads} "
        f"heads, {SHAPES[name].kv_heads} for keys and values, {dtype}"
        for name, dtype in used
    )
    return (
        f"{hardware(about)}. Random weights; {shapes}. Tokens in sequences of at most {LENGTH}. "
        "A step is forward and backward; the frozen model has the gradient of its input only. "
        "Every linear layer is adapted, or q, k, v and o where the name says qkvo; no dropout, no "
        f"norms trained. ms: median of {about['repeats']} rounds, all methods of a rank taking "
        "turns in one process. Ratios: median over rounds of the ratio inside a round; '/ LoRA' "
        "is to LoRA of the same rank and targets (VeRA and FourierFT, at PEFT's sizes, to LoRA of "
        "the first rank). saved: activations that a forward pass keeps, every storage once. peak: "
        "rise over the prepared model in a step. kept: what the adapter holds between steps. "
        "AdamW: the optimizer's state."
    )


def run(options: argparse.Namespace) -> None:
    """Measure and report."""
    about, path = machine(options), RESULTS / f"{options.output}.json"
    todo = settings(options)
    if options.decode:
        found = [Setting.of("llama", options.layers, 1, r, options) for r in options.ranks]
        records = [r for setting in tqdm(found) for r in step_decoding.measure(setting, options)]
        text = f"{hardware(about)}. {step_decoding.CAPTION}\n\n{step_decoding.table(records)}\n"
        harness.report(path, about, records, text)
        return
    total = sum(len(chosen(options, first=s.rank == options.ranks[0])) for s in todo)
    with tqdm(total=total, unit="method") as bar:
        records = [record for setting in todo for record in measure(setting, options, bar)]
    text = f"{caption(about, records)}\n\n{table(records)}\n"
    harness.report(path, about, records, text)
    picture(records, hardware(about), path.with_suffix(".png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["llama", "bert", "both"], default="both")
    parser.add_argument("--layers", type=int, help="of the models (default: 6)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="in a step")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: 7)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--no-peak", dest="peak", action="store_false", help="leave out the peak")
    parser.add_argument("--decode", action="store_true", help="time decoding instead")
    parser.add_argument("--output", metavar="NAME", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    for name in ("tokens", "ranks", "repeats", "layers"):
        values = getattr(options, name)
        if any(n < 1 for n in ([values] if isinstance(values, int) else values or ())):
            parser.error(f"--{name}: positive numbers, got {values}")
    if wrong := [n for n in options.tokens if n > LENGTH and n % LENGTH]:
        parser.error(f"--tokens above {LENGTH} are multiples of it, got {wrong}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no such device")
    if options.output is None:
        free = ("decode", "output", "device", "dtype")
        part = any(
            getattr(options, action.dest) != action.default
            for action in parser._actions
            if action.dest not in (*free, "help")
        )
        names = ["decoding" if options.decode else "training_step"]
        names += [options.device] * (options.device != "cpu")
        names += [options.dtype] * (options.dtype != "float32") + ["part"] * part
        options.output = "_".join(names)
    return options


if __name__ == "__main__":
    run(arguments())
