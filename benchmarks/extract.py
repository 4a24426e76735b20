"""A fully fine-tuned model as adapters: bytes, error, seconds, and how much of the gain is kept.

    python benchmarks/extract.py --base FOLDER --finetuned FOLDER --text FILE [--layer]

FILE is a text (.txt or .txt.gz) that was not trained on; the loss is that of 32 blocks of 256
tokens of it. Beside every LoRA stands the usual way to extract one: the whole singular value
decomposition of every weight, in single precision by torch, cut to the rank. With `--layer`, one
layer of Llama 3 8B's shapes at rank 128 is timed instead, and multiplied by its 32 layers.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig, extract

RESULT = Path(__file__).parent / "results" / "extract.json"
CONFIGS: dict[str, list[tuple[str, Any]]] = {
    "LoRA": [(f"r={r}", peft.LoraConfig(r=r)) for r in (1, 8, 32)],
    "LoTR": [(f"r={r}", LoTRConfig(r=r)) for r in (16, 32, 64)],
    "LoRTA": [(f"r={r}", LoRTAConfig(r=r)) for r in (4, 8, 16)],
    "LoRETTA rep": [
        (f"tt_rank={r}", LoRETTAConfig(tt_rank=r, bottleneck=min(r, 16), dropout=0.0))
        for r in (4, 8, 16)
    ],
    "DoTA": [(f"r={r}", DoTAConfig(r=r)) for r in (8, 16, 32)],
}
EIGHT_B = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}


def blocks(folder: Path, path: Path) -> torch.Tensor:
    """32 blocks of 256 tokens of a text."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as file:
        text = file.read()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    return ids[: len(ids) // 256 * 256].view(-1, 256)[20:52]


@torch.inference_mode()
def loss(model: Any, rows: torch.Tensor) -> float:
    model.eval()
    parts = rows.split(4)
    return sum(float(model(input_ids=part, labels=part).loss) for part in parts) / len(parts)


def by_whole_svd(before: Path, after: Path, rank: int) -> tuple[float, float]:
    """Seconds and relative error of cutting whole decompositions, as it is usually done."""
    begin = time.perf_counter()
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    off = norm = 0.0
    for name, value in new.items():
        if value.ndim == 2 and ".layers." in name:
            delta = value.float() - old[name].float()
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            (u[:, :rank] * s[:rank].sqrt()).contiguous(), s[:rank].sqrt()[:, None] * vh[:rank]
            off += float(s[rank:].double().square().sum())
            norm += float(s.double().square().sum())
    return time.perf_counter() - begin, math.sqrt(off / norm)


def whole_model(options: argparse.Namespace) -> None:
    rows = blocks(options.base, options.text)
    base = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    tuned = transformers.AutoModelForCausalLM.from_pretrained(options.finetuned)
    first, last = loss(base, rows), loss(tuned.float(), rows)
    records: list[dict[str, Any]] = []
    for method, configs in CONFIGS.items():
        for setting, config in configs:
            with tempfile.TemporaryDirectory() as place:
                begin = time.perf_counter()
                target = f"{place}/adapter"
                found = extract(options.base, options.finetuned, config, target, progressbar=False)
                seconds = time.perf_counter() - begin
                model = peft.PeftModel.from_pretrained(copy.deepcopy(base), target)
                kept = (first - loss(model, rows)) / (first - last)
            record = {"method": method, "setting": setting, "params": found.n_params}
            record |= {"bytes": found.n_bytes, "error": found.error, "seconds": seconds}
            record["gain_kept"] = kept
            if method == "LoRA":
                whole = by_whole_svd(options.base, options.finetuned, config.r)
                record |= {"whole_svd_seconds": whole[0], "whole_svd_error": whole[1]}
            records.append(record)
            print(record, flush=True)
    about = harness.machine(["tnlib", "torch", "peft", "transformers"])
    header = ["method", "size", "parameters", "bytes", "error", "gain kept", "s", "whole SVD: s"]
    lines = [
        [
            record["method"],
            record["setting"],
            f"{record['params']:,}",
            f"{record['bytes']:,}",
            f"{record['error']:.3f}",
            f"{record['gain_kept']:.0%}",
            f"{record['seconds']:.1f}",
            f"{record['whole_svd_seconds']:.0f} (error {record['whole_svd_error']:.3f})"
            if "whole_svd_seconds" in record
            else "",
        ]
        for record in records
    ]
    text = (
        f"# A fine-tuned model as adapters\n\nLoss of an unseen text {first:.3f} before and "
        f"{last:.3f} after fine-tuning in full; error of the adapted weights' change.\n\n"
        f"{harness.table(header, lines)}\n\n{about['cpu']}, {about['cores']} cores.\n"
    )
    harness.report(RESULT, about, records, text, loss_before=first, loss_after=last)


def layer() -> None:
    """One layer of 8B's shapes, whose change has a power-law spectrum, at rank 128."""
    generator = torch.Generator().manual_seed(0)
    small = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("base", "tuned"):
            (folder / name).mkdir()
            small.architectures = ["LlamaForCausalLM"]
            small.save_pretrained(folder / name)
        with torch.device("meta"):
            shapes = transformers.LlamaForCausalLM(small).state_dict()
        old = {n: torch.zeros(tuple(v.shape), dtype=torch.bfloat16) for n, v in shapes.items()}
        new = {}
        for name, value in old.items():
            old[name] = value = torch.randn(value.shape, generator=generator).bfloat16() / 64
            leaf = name.split(".")[-2]
            if leaf in EIGHT_B:
                rows, columns = value.shape
                left = torch.randn(rows, 1024, generator=generator) / rows**0.5
                right = torch.randn(1024, columns, generator=generator) / columns**0.5
                change = (left * torch.arange(1, 1025).pow(-0.5)) @ right
                new[name] = (value.float() + 0.3 * change).bfloat16()
            else:
                new[name] = value
        save_file(old, folder / "base" / "model.safetensors", {"format": "pt"})
        save_file(new, folder / "tuned" / "model.safetensors", {"format": "pt"})
        begin = time.perf_counter()
        found = extract(
            folder / "base",
            folder / "tuned",
            peft.LoraConfig(r=128),
            folder / "lora",
            progressbar=False,
        )
        ours = time.perf_counter() - begin
        theirs, error = by_whole_svd(folder / "base", folder / "tuned", 128)
    record = {"seconds": ours, "error": found.error, "minutes_of_32_layers": 32 * ours / 60}
    record |= {"whole_svd_seconds": theirs, "whole_svd_error": error}
    about = harness.machine(["tnlib", "torch"])
    text = (
        f"# One layer of Llama 3 8B's shapes at rank 128\n\n{ours:.1f} s, error {found.error:.4f}; "
        f"32 layers {32 * ours / 60:.1f} min. Whole SVDs: {theirs:.0f} s, error {error:.4f}.\n\n"
        f"{about['cpu']}, {about['cores']} cores.\n"
    )
    harness.report(RESULT.with_name("extract_layer.json"), about, [record], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--finetuned", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--layer", action="store_true")
    options = parser.parse_args()
    layer() if options.layer else whole_model(options)


if __name__ == "__main__":
    main()
