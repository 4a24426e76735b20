"""What a base in 4 bits costs and saves, under every method.

    python benchmarks/quantization.py --part train --model FOLDER --text FILE ... --held-out FILE
    python benchmarks/quantization.py --part steps [--shape llama-7b --layers 1 --tokens 256]
    python benchmarks/quantization.py --part errors --model FOLDER [--ranks 4 8 16 32 64]

"train" fine-tunes a causal model, FOLDER as transformers saves it, on texts (UTF-8, .gz or not) and
measures perplexity on another one; "steps" takes steps of models with random weights; "errors"
quantises real weights with and without their initial operators. Each writes its own
results/quantization_<part>.*, or --output. On a CPU a step of the 7B shape takes seconds: give it
few layers, tokens and rounds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import quantization_errors
import quantization_steps
import quantization_train
import torch
from quantization_models import EQUAL, METHODS, QLORA
from step_models import LENGTH
from task import positive, silence
from text_tasks import DemoError

RESULTS = Path(__file__).parent / "results"
PARTS = {"train": quantization_train, "steps": quantization_steps, "errors": quantization_errors}
BYTES = (
    "Ratio: median over rounds of the ratio inside a round. MB are 10^6 bytes. base: the model's "
    "own weights as they are held, scales included. adapter: what the adapter holds between steps, "
    "DoTA's theta_0 included. AdamW: the optimizer's state. saved: activations that a forward pass "
    "keeps, every storage once. rise: of memory in a step, in a process that gives back what is "
    "freed at once, so that it is that of the tensors; total: base, adapter, AdamW and rise. "
    "An allocator that keeps what is freed, as glibc's does by default, can need twice the rise."
)


def table(records: list[dict[str, Any]], *, trained: bool) -> str:
    header = ["method", "rank", "values", "base MB", "adapter MB", "AdamW MB", "saved MB"]
    header += ["rise MB", "total MB", "s / step", "/ QLoRA"]
    header += ["rate", "perplexity before", "after"] if trained else []
    rows = []
    for r in records:
        row = [r["method"], str(r["rank"] or ""), f"{r['trained']:,}"]
        row += [megabytes(r[part]) for part in ("base", "adapter", "optimizer", "saved", "rise")]
        row += [megabytes(total(r)), f"{r['seconds']['median']:.3f}", f"{r['to_qlora']:.2f}"]
        if trained:
            row += [f"{r['rate']:g}", f"{r['before']:.2f}", f"{r['after']:.2f}"]
        rows.append(row)
    return harness.table(header, rows)


def megabytes(number: float | None) -> str:
    return "" if number is None else f"{number / 1e6:.1f}"


def total(record: dict[str, Any]) -> float | None:
    """Bytes of everything at the peak of a step."""
    parts = [record[part] for part in ("base", "adapter", "optimizer", "rise")]
    return None if None in parts else sum(parts)


def against_qlora(records: list[dict[str, Any]]) -> str:
    """How far the QDoTA that trains as many values as QLoRA is from it, and what was allowed."""
    (peer,) = (r for r in records if r["method"] == QLORA)
    lines = []
    for r in records:
        near = 0.8 < r["trained"] / peer["trained"] < 1.25
        if not (near and r["method"].startswith("QDoTA") and r["rise"] is not None):
            continue
        anchor = r["adapter"] - 4 * r["trained"]
        more = [total(r) - total(peer), r["rise"] - peer["rise"]]
        lines.append(
            f"{r['method']}, {r['trained']:,} parameters ({QLORA}: {peer['trained']:,}): "
            f"{r['to_qlora']:.2f} of {QLORA}'s time; total {more[0] / 1e6:+.1f} MB, rise "
            f"{more[1] / 1e6:+.1f} MB against {QLORA}, where theta_0 is {megabytes(anchor)} MB and "
            f"the largest adapted weight in float32 {megabytes(r['layer'])} MB."
        )
    return "\n\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Measure and report."""
    about = harness.machine(["tnlib", "torch", "transformers", "peft", "bitsandbytes"])
    about |= {"threads": torch.get_num_threads()}
    if options.device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
    # Names only: where the files are is this machine's business.
    about |= {key: getattr(value, "name", value) for key, value in vars(options).items()}
    about["text"] = [text.name for text in options.text or ()]
    path = RESULTS / f"{options.output}.json"
    records = PARTS[options.part].measure(options)
    hardware = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads"
    hardware = f"{about['gpu']} ({hardware})" if "gpu" in about else hardware
    text = f"{hardware}; seed {options.seed}. {PARTS[options.part].caption(records, options)}"
    if options.part == "errors":
        text += f"\n\n{quantization_errors.table(records, options.ranks)}\n"
        quantization_errors.picture(records, options.ranks, path.with_suffix(".png"))
    else:
        text += f" {BYTES}\n\n"
        text += f"{table(records, trained=options.part == 'train')}\n"
        notes = against_qlora(records)
        text += f"\n{notes}\n" if notes else ""
    harness.report(path, about, records, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", type=Path, help="train, errors: folder of a causal model")
    parser.add_argument("--note", default="", help="train, errors: said of the model in the result")
    parser.add_argument("--text", type=Path, nargs="+", help="train: texts to train on")
    parser.add_argument("--held-out", type=Path, help="train: text to measure perplexity on")
    parser.add_argument("--steps", type=positive, default=40, help="train: steps (default 40)")
    parser.add_argument("--shape", choices=["llama", "llama-7b"], default="llama", help="steps")
    parser.add_argument("--layers", type=positive, help="steps: of the model (llama 6, 7b 2)")
    parser.add_argument("--tokens", type=positive, default=512, help="steps: in one (default 512)")
    parser.add_argument("--rank", type=positive, default=8, help="steps: (default 8)")
    parser.add_argument("--repeats", type=positive, default=5, help="steps: rounds (default 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="steps")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="steps")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME")
    parser.add_argument(
        "--ranks", type=positive, nargs="+", default=[4, 8, 16, 32, 64], help="errors"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--output", metavar="NAME", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    needed = {"train": ("model", "text", "held_out"), "errors": ("model",), "steps": ()}
    for name in needed[options.part]:
        if getattr(options, name) is None:
            parser.error(f"--part {options.part} needs --{name.replace('_', '-')}")
    if options.device == "cuda" and not (options.part == "steps" and torch.cuda.is_available()):
        parser.error("--device cuda: only for --part steps, and where torch finds such a device")
    if options.tokens > LENGTH and options.tokens % LENGTH:
        parser.error(f"--tokens above {LENGTH} are multiples of it, got {options.tokens}")
    # In the train part QDoTA has QLoRA's size anyway.
    known = [name for name in METHODS if options.part == "steps" or name != EQUAL]
    options.methods = [n for n in known if n in {QLORA, *(options.methods or known)}]
    shape = [options.shape] * (options.part == "steps" and options.shape != "llama")
    device = [options.device] * (options.device != "cpu")
    options.output = options.output or "_".join(["quantization", options.part, *shape, *device])
    return options


if __name__ == "__main__":
    silence()
    try:
        run(arguments())
    except DemoError as error:
        raise SystemExit(f"error: {error}") from error
