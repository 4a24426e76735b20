"""The table of the starts benchmark, made of the lines that its runs wrote."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness


def gains(lines: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[float, dict[int, Any]]]:
    """The fall of the loss after every number of steps, by case, rate and seed."""
    found: dict[Any, dict[float, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        case = line["task"], line["method"], line["start"], line["size"]
        fallen = {
            step: line["before"] - loss if loss is not None else 0.0
            for step, loss in line["losses"].items()
        }
        found[case][line["rate"]][line["seed"]] = fallen
    return found


def best(by_rate: dict[float, dict[int, Any]], step: str) -> dict[int, float]:
    """The gains by seed at the rate with the largest mean."""
    every = [
        {seed: run.get(step, 0.0) for seed, run in seeds.items()} for seeds in by_rate.values()
    ]
    return max(every, key=lambda seeds: statistics.mean(seeds.values()))


def records(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a start; differences to the default start are paired over seeds."""
    found, rows = gains(lines), []
    steps = [str(step) for step in lines[0]["steps"]]
    for case, by_rate in found.items():
        task, method, start, size = case
        mine = [
            line
            for line in lines
            if (line["task"], line["method"], line["start"], line["size"]) == case
        ]
        row = {"task": task, "method": method, "start": start, "size": size}
        row |= {"parameters": mine[0]["parameters"]}
        held = [line["held"] for line in mine if "held" in line]
        row |= {"held": statistics.mean(held) if held else None}
        row |= {"start_seconds": statistics.median(line["start_seconds"] for line in mine)}
        usual = next((k for k in found if k[:2] == case[:2] and k[3] == size), None)
        for step in steps:
            own = best(by_rate, step)
            row[f"gain_{step}"] = statistics.mean(own.values())
            if usual is not None and usual != case:
                other = best(found[usual], step)
                pairs = [own[seed] - other[seed] for seed in own if seed in other]
                row[f"over_{step}"] = [min(pairs), statistics.mean(pairs), max(pairs)]
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], steps: list[str]) -> str:
    header = ["method", "size", "parameters", "start", "held", "start, s"]
    header += [f"gain at {step}" for step in steps] + [f"over the first at {steps[-1]}"]
    cells = []
    for row in rows:
        cells.append([row["method"], f"{row['size']}", f"{row['parameters']:,}", row["start"]])
        cells[-1].append("" if row["held"] is None else f"{row['held']:.0%}")
        cells[-1].append(f"{row['start_seconds']:.1f}")
        cells[-1] += [f"{row[f'gain_{step}']:.3f}" for step in steps]
        over = row.get(f"over_{steps[-1]}")
        cells[-1].append("" if over is None else "{1:+.3f} ({0:+.3f} to {2:+.3f})".format(*over))
    return harness.table(header, cells)


def write(path: Path, lines: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write tables beside the lines."""
    rows = records(lines)
    steps = [str(step) for step in lines[0]["steps"]]
    parts = [
        f"{about['cpu']}, {about['cores']} cores; float32. AdamW without decay, five steps of "
        "warm-up, then a constant rate; gradients clipped to norm 1. Gain: fall of the loss, in "
        "nats, on data not trained on, the mean over seeds at the best of the rates "
        f"{', '.join(f'{rate:g}' for rate in sorted({line['rate'] for line in lines}))} for each "
        "start and number of steps; a run whose loss is not finite counts as none. The last column "
        "is the difference to the first start of that method and size, paired over seeds: mean, "
        "least and most. Held: the part of the gradients' energy that the network holds. Start: "
        "adapting the model included."
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        seeds = sorted({line["seed"] for line in lines if line["task"] == task})
        title = f"## {task}, seeds {', '.join(map(str, seeds))}"
        parts.append(f"{title}\n\n{table(mine, steps)}")
    harness.report(path.with_suffix(".json"), about, rows, "\n\n".join(parts) + "\n")
