"""Find each method's learning rate for the demo: ``python examples/tune_sentiment.py``.

Trains every method at every rate with two seeds, for as many steps as the demo does, and keeps
the rate with the lowest mean validation loss at the end. The test sentences are never looked at.
Each finished run is saved at once; a run that the file holds already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from assets import DemoError
from report import format_table
from sentiment import METHODS, Settings
from task import RATES_FILE, Task, add_task_arguments, load_task, silence
from tqdm.auto import tqdm

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (0, 1)
Run = dict[str, Any]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find the demo's learning rates.")
    add_task_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), metavar="RATE")
    parser.add_argument(
        "--output", type=Path, default=RATES_FILE, help="JSON file that the demo reads"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid, save it and print it."""
    options = parse_arguments(arguments)
    silence()
    try:
        runs = run_grid(load_task(options), options)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(grid_table(runs))
    print("\nChosen:", ", ".join(f"{METHODS[m]} {rate:g}" for m, rate in choose(runs).items()))
    if edges := at_edge(runs):
        print("The best rate is at the edge of the grid; try more --rates for", *edges)
    print(f"Saved to {options.output}")
    return 0


def run_grid(task: Task, options: argparse.Namespace) -> list[Run]:
    """Train what the output file lacks; the runs of the file and the new ones."""
    setup = {
        "script": "examples/tune_sentiment.py",
        "model": options.model or "minilm",
        "data": options.data.name if options.data else "vader-movies",
        "steps": options.steps,
        "ranks": task.ranks,
    }
    runs = load_runs(options.output, setup)
    done = {(run["method"], run["learning_rate"], run["seed"]) for run in runs}
    grid = [(m, rate, seed) for m in options.methods for rate in options.rates for seed in SEEDS]
    missing = [point for point in grid if point not in done]
    for method, rate, seed in tqdm(missing, "runs", disable=options.no_progress):
        settings = Settings(rate, options.steps, seed, validate_every=options.steps, progress=False)
        loss = task.train(method, settings, "")[1].validation_losses[-1]
        runs.append({"method": method, "learning_rate": rate, "seed": seed, "loss": loss})
        save_runs(options.output, setup, runs)
    return runs


def load_runs(path: Path, setup: dict[str, Any]) -> list[Run]:
    """The runs saved with the same setup; none if there is no file or the setup was another."""
    if not path.is_file():
        return []
    saved = json.loads(path.read_text(encoding="utf-8"))
    return list(saved["runs"]) if saved["setup"] == setup else []


def save_runs(path: Path, setup: dict[str, Any], runs: list[Run]) -> None:
    """Write the setup, the chosen rates and all runs; an interruption leaves the old file."""
    fresh = path.with_name(path.name + ".new")
    content = {"setup": setup, "chosen": choose(runs), "runs": runs}
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def mean_losses(runs: list[Run]) -> dict[str, dict[float, float]]:
    """For each method and rate, the loss averaged over the seeds; a diverged run's is infinite."""
    losses: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        loss = run["loss"] if math.isfinite(run["loss"]) else math.inf
        losses.setdefault(run["method"], {}).setdefault(run["learning_rate"], []).append(loss)
    return {m: {r: mean(rates[r]) for r in sorted(rates)} for m, rates in losses.items()}


def choose(runs: list[Run]) -> dict[str, float]:
    """The rate with the lowest mean loss, for each method."""
    return {m: min(rates, key=rates.__getitem__) for m, rates in mean_losses(runs).items()}


def at_edge(runs: list[Run]) -> list[str]:
    """The methods whose best rate is the smallest or the largest that was tried."""
    tried = mean_losses(runs)
    chosen = choose(runs)
    return [METHODS[m] for m, best in chosen.items() if best in (min(tried[m]), max(tried[m]))]


def grid_table(runs: list[Run]) -> str:
    """Mean validation losses, one line a method and one column a rate."""
    losses = mean_losses(runs)
    rates = sorted({rate for by_rate in losses.values() for rate in by_rate})
    rows = [
        (METHODS[method], *(f"{by_rate[r]:.4f}" if r in by_rate else "" for r in rates))
        for method, by_rate in losses.items()
    ]
    return format_table(("mean validation loss", *(f"{rate:g}" for rate in rates)), rows)


if __name__ == "__main__":
    sys.exit(main())
