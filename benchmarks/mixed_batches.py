"""Decoding of batches whose rows have different adapters, by ``adapter_names=``.

    python benchmarks/mixed_batches.py

Rows take turns through 1, 4 and 16 adapters. All methods run in one process, once a round each.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from functools import partial
from typing import Any

import harness
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rates import RESULTS
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig

ROWS, PROMPT, NEW, ADAPTERS = 16, 16, 32, (1, 4, 16)
TARGETS = ["q_proj", "v_proj"]
LORA, FROZEN = "LoRA (peft)", "frozen"
METHODS: dict[str, Any] = {
    LORA: lambda: LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
    "LoTR": lambda: LoTRConfig(r=8, target_modules=TARGETS),
    "LoRTA": lambda: LoRTAConfig(r=8, target_modules=TARGETS),
    "LoRETTA rep": lambda: LoRETTAConfig(dropout=0.0, train_norms=False, target_modules=TARGETS),
    "DoTA": lambda: DoTAConfig(r=8, target_modules=TARGETS),
}


def base_model() -> nn.Module:
    """A causal model with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    ).eval()


def adapted(base: nn.Module, method: str, number: int) -> PeftModel:
    """A model with some adapters, none of them zero."""
    model = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    model = get_peft_model(model, METHODS[method](), adapter_name="a0")
    for k in range(1, number):
        model.add_adapter(f"a{k}", METHODS[method]())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(f".a{k}." in name or name.endswith(f".a{k}") for k in range(number)):
                weight.add_(0.01 * torch.randn_like(weight))
    return model.eval()


@torch.no_grad()
def decode(model: nn.Module, prompt: torch.Tensor, **named: Any) -> torch.Tensor:
    """Greedy decoding of a batch, one token of every row at a time."""
    output = model(input_ids=prompt, use_cache=True, **named)
    for _ in range(NEW - 1):
        latest = output.logits[:, -1:].argmax(-1)
        cache = output.past_key_values
        output = model(input_ids=latest, past_key_values=cache, use_cache=True, **named)
    return output.logits


def measure(number: int, base: nn.Module, repeats: int) -> list[dict[str, Any]]:
    prompt = torch.randint(256, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    names = [f"a{row % number}" for row in range(ROWS)]
    runs = {FROZEN: partial(decode, base, prompt)}
    for method in METHODS:
        model = adapted(base, method, number)
        runs[method] = partial(decode, model, prompt, adapter_names=names)
    for run in runs.values():
        run()
    seconds = harness.alternate(runs, repeats, math.inf)
    rows = []
    for method, spent in seconds.items():
        pairs = zip(spent, seconds[LORA], strict=True)
        row = {"adapters": number, "method": method, "seconds": harness.summary(spent)}
        row |= {"tokens_per_second": ROWS * NEW / statistics.median(spent)}
        rows.append(row | {"to_lora": statistics.median(own / other for own, other in pairs)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = base_model()
    rows = [row for n in tqdm(ADAPTERS) for row in measure(n, base, options.repeats)]
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    cells = [
        [
            f"{row['adapters']}",
            row["method"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['to_lora']:.2f}",
        ]
        for row in rows
    ]
    caption = (
        f"{about['cpu']}, {about['cores']} cores, {options.threads} threads; float32. Greedy "
        f"decoding of {NEW} tokens for {ROWS} rows after prompts of {PROMPT}; six Llama layers of "
        "width 576 with random weights; queries and values, rank 8 (rep: 5). Rows take turns "
        "through the adapters by adapter_names=. The ratio of times to LoRA's is the median inside "
        "a round."
    )
    table = harness.table(["adapters", "method", "tokens / s", "time / LoRA's"], cells)
    harness.report(RESULTS / "mixed_batches.json", about, rows, f"{caption}\n\n{table}\n")


if __name__ == "__main__":
    main()
