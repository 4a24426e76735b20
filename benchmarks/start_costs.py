"""What a start from data takes, and what it holds, on a real model.

    python benchmarks/start_costs.py --model FOLDER --text FILE

Every start is made in a process of its own: its seconds, its memory beyond that of the model, and
the part of the energy of the weights' gradients that the network holds. The starts are those of
starts.py, on the same batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from starts import RESULTS, SEEN, STARTS, started
from text_tasks import BATCH, TOKENS, novel
from tqdm import tqdm

DATA_DRIVEN = ("gradients", "EVA (peft)", "LoRA-GA (peft)")


def prepared(model: Path, text: Path, threads: int, case: dict[str, Any]) -> Callable[[], Any]:
    """The call that starts an adapter."""
    torch.set_num_threads(threads)
    task = novel(model, text)

    def call() -> dict[str, Any]:
        adapted, about = started(task.base, task, case)
        weights = [weight for weight in adapted.parameters() if weight.requires_grad]
        return about | {"parameters": sum(weight.numel() for weight in weights)}

    return call


def table(rows: list[dict[str, Any]]) -> str:
    header = ["method", "size", "parameters", "start", "held", "seconds", "memory, MiB"]
    cells = [
        [
            row["method"],
            f"{row['size']}",
            f"{row['parameters']:,}",
            row["start"],
            f"{row['held']:.1%}" if "held" in row else "",
            f"{row['start_seconds']:.1f}",
            f"{row['bytes'] / 2**20:.0f}",
        ]
        for row in rows
    ]
    return harness.table(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal model")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text, .gz or not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "start_costs.json")
    options = parser.parse_args()
    cases = [
        {"method": method, "start": start, "size": size, "seed": 0, "targets": None}
        for method, start, _, sizes in STARTS
        if start in DATA_DRIVEN
        for size in sizes
    ]
    rows = []
    for case in tqdm(cases):
        found = harness.apart(prepared, options.model, options.text, options.threads, case)
        if found is None:
            raise SystemExit("this system does not tell a process's memory, or a start failed")
        rows.append(case | found[0] | {"bytes": found[1]})
    about = harness.machine(["tnlib", "torch", "transformers", "peft"])
    page = (
        f"{about['cpu']}, {options.threads} threads; float32. {options.model.name}, default "
        f"targets, {SEEN} batches of {BATCH} times {TOKENS} tokens. Held: the part of the energy "
        "of the weights' gradients. Memory: beyond that of the model.\n\n"
    )
    harness.report(options.output, about, rows, page + table(rows) + "\n")


if __name__ == "__main__":
    main()
