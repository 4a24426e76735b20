"""A LoRA trained on a real text, converted into the other formats: error, size, perplexity.

    python benchmarks/lora_conversion.py --model FOLDER --text FILE

FOLDER is a causal model as transformers saves it, FILE a text (.txt or .txt.gz). The LoRA truncated
to lower ranks by the singular value decomposition of every weight is the yardstick.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import safetensors.torch
import torch
from fine_tuning import RATES, stepper
from peft import LoraConfig, PeftModel, get_peft_model
from task import positive, silence
from text_tasks import BATCH, HELD_OUT, TOKENS, DemoError, Task, novel
from tqdm import tqdm

from tnlib_adapters import LoRETTAConfig, LoRTAConfig, LoTRConfig, NetworkConfig
from tnlib_adapters.convert.from_lora import from_lora

RESULT = Path(__file__).parent / "results" / "lora_conversion.json"
FILE = "adapter_model.safetensors"
CONVERSIONS: dict[str, list[tuple[str, NetworkConfig]]] = {
    "LoTR": [(f"r={r}", LoTRConfig(r=r)) for r in (16, 32, 64)],
    "LoRTA": [(f"r={r}", LoRTAConfig(r=r)) for r in (16, 64, 128)],
    "LoRETTA rep": [(f"tt_rank={r}", LoRETTAConfig(tt_rank=r, dropout=0.0)) for r in (4, 8, 16)],
}
TRUNCATED = (1, 2, 4)


def fresh(task: Task) -> Any:
    """A model whose frozen weights are the base's own, not a copy."""
    return copy.deepcopy(task.base, {id(weight): weight for weight in task.base.parameters()})


def train(task: Task, options: argparse.Namespace, folder: Path) -> None:
    """Train a LoRA on PEFT's default targets, at the fine-tuning table's rate, and save it."""
    torch.manual_seed(options.seed)
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, task_type=task.kind)
    model = get_peft_model(fresh(task), config)
    batches = list(itertools.islice(task.batches(options.seed), options.steps))
    with tqdm(total=len(batches), desc="training the LoRA, steps") as bar:
        step = stepper(model, batches, RATES["language"], bar)
        for _ in batches:
            step()
    model.save_pretrained(folder)


def truncate(source: Path, target: Path, rank: int) -> float:
    """The best LoRA of lower rank for every weight; its relative error."""
    target.mkdir()
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(source / FILE)
    off = total = 0.0
    for key in [key for key in tensors if key.endswith("lora_A.weight")]:
        other = key.replace("lora_A", "lora_B")
        u, s, vh = torch.linalg.svd((tensors[other] @ tensors[key]).double(), full_matrices=False)
        off, total = off + float((s[rank:] ** 2).sum()), total + float((s**2).sum())
        root = s[:rank].sqrt()
        tensors[other] = (u[:, :rank] * root).float().contiguous()
        tensors[key] = (root[:, None] * vh[:rank]).float().contiguous()
    safetensors.torch.save_file(tensors, target / FILE, {"format": "pt"})
    config |= {"r": rank, "lora_alpha": config["lora_alpha"] / config["r"] * rank}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return math.sqrt(off / total)


def loss(task: Task, folder: Path) -> float:
    """Loss on the test chunks with the adapter of a folder."""
    return task.test(PeftModel.from_pretrained(fresh(task), folder))[0]


def size(folder: Path) -> dict[str, int]:
    tensors = safetensors.torch.load_file(folder / FILE)
    values = sum(tensor.numel() for tensor in tensors.values())
    return {"values": values, "bytes": (folder / FILE).stat().st_size}


def measure(task: Task, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One record an adapter, the base and the LoRA first."""
    lora = options.lora or folder / "lora"
    if not lora.exists():
        train(task, options, lora)
    base, reached = task.test(task.base)[0], loss(task, lora)
    records: list[dict[str, Any]] = []

    def record(method: str, name: str, place: Path | None, loss: float, **more: Any) -> None:
        entry = {"method": method, "size": name, "loss": loss, "perplexity": math.exp(loss)}
        entry |= {"kept": (base - loss) / (base - reached), "seconds": None}
        entry |= {"values": 0, "bytes": 0} if place is None else size(place)
        records.append(entry | more)

    record("base model", "", None, base, error=1.0)
    rank = json.loads((lora / "adapter_config.json").read_text())["r"]
    record("LoRA", f"r={rank}", lora, reached, error=0.0)
    for lower in (lower for lower in TRUNCATED if lower < rank):
        place = folder / f"truncated_{lower}"
        error = truncate(lora, place, lower)
        record("LoRA, truncated", f"r={lower}", place, loss(task, place), error=error)
    for method, conversions in CONVERSIONS.items():
        for k, (name, config) in enumerate(conversions):
            place = folder / f"{config.method}_{k}"
            start = time.perf_counter()
            conversion = from_lora(lora, place, config, base=task.base, progressbar=True)
            seconds = time.perf_counter() - start
            found = {"error": conversion.error, "seconds": seconds}
            record(method, name, place, loss(task, place), **found)
    return records


def table(records: list[dict[str, Any]]) -> str:
    header = ["adapter", "size", "values", "file kB", "error of dW", "perplexity"]
    header += ["gain kept", "fit, s"]
    rows = []
    for r in records:
        row = [r["method"], r["size"], f"{r['values']:,}", f"{r['bytes'] / 1000:,.0f}"]
        row += [f"{r['error']:.3f}", f"{r['perplexity']:.2f}", f"{r['kept']:.0%}"]
        rows.append([*row, "" if r["seconds"] is None else f"{r['seconds']:.0f}"])
    return harness.table(header, rows)


def caption(about: dict[str, Any], options: argparse.Namespace) -> str:
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; float32. "
        f"{options.model.name} with a LoRA (r={options.rank}) on queries and values, "
        f"{options.steps} steps of {BATCH} chunks of {TOKENS} tokens of "
        f"{options.text.name}; perplexity on the last {HELD_OUT} chunks, which are not "
        "trained on. Error: relative, in the Frobenius norm over all updates together. Gain kept: "
        "share of the LoRA's fall in loss that is left after conversion. Truncated: the best LoRA "
        "of that rank for every weight. No adapter was trained after its conversion. Seed "
        f"{options.seed} only; seconds include writing, on a machine that was not idle."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal model")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text, .gz or not")
    parser.add_argument("--steps", type=positive, default=40, help="of training (default 40)")
    parser.add_argument(
        "--lora", type=Path, help="folder that keeps the LoRA: trained unless it is there already"
    )
    parser.add_argument("--rank", type=positive, default=8, help="of the LoRA (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    silence()
    options = parser.parse_args()
    try:
        task = novel(options.model, options.text)
    except DemoError as error:
        raise SystemExit(f"error: {error}") from error
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    about |= {"threads": torch.get_num_threads()}
    about |= {key: getattr(value, "name", value) for key, value in vars(options).items()}
    with tempfile.TemporaryDirectory() as folder:
        records = measure(task, options, Path(folder))
    text = f"{caption(about, options)}\n\n{table(records)}\n"
    harness.report(options.output, about, records, text)


if __name__ == "__main__":
    main()
