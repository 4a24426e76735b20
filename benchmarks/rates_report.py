"""The tables and the picture of the rates benchmark, made of the lines that its runs wrote."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness

LORA = "LoRA (peft)"
# Okabe and Ito's palette.
COLORS = ["#000000", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#0072B2", "#56B4E9"]
# A task with its targets and steps; a method with its size, and whether its cores are scaled.
Group = tuple[str, str, int]
Case = tuple[str, int, bool]
# Gains of the runs by rate and seed; None where the loss was not finite or had not fallen.
Gains = dict[float, dict[int, float | None]]


def gathered(lines: Iterable[dict[str, Any]]) -> dict[Group, dict[Case, Gains]]:
    """The fall of the loss in every run."""
    found: dict[Group, dict[Case, Gains]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        group = line["task"], line["targets"] or "default targets", line["steps"]
        case = line["method"], line["size"], line["scaled"]
        gain = None if line["after"] is None else line["before"] - line["after"]
        seeds = found[group][case].setdefault(line["rate"], {})
        seeds[line["seed"]] = gain if gain is not None and gain > 0 else None
    return found


def mean(gains: dict[int, float | None]) -> float:
    """Mean over seeds, a run that failed counted as no gain."""
    return statistics.mean(gain or 0.0 for gain in gains.values())


def best(gains: Gains) -> float:
    """The rate with the largest mean gain."""
    return max(gains, key=lambda rate: mean(gains[rate]))


def summaries(found: dict[Case, Gains]) -> list[dict[str, Any]]:
    """What every method has at its own best rate, and at LoRA's.

    A share is of the best gain of a method and size at any rate in either parametrisation.
    """
    usual = [case for case in found if case[0] == LORA]
    rate = best(found[min(usual, key=lambda case: abs(case[1] - 8))])
    tuned: dict[tuple[str, int], float] = defaultdict(float)
    for (*which, _), gains in found.items():
        if len(gains) > 1:
            tuned[*which] = max(tuned[*which], mean(gains[best(gains)]))
    rows = []
    for (method, size, scaled), gains in found.items():
        row = {"method": method, "size": size, "scaled": scaled, "lora_rate": rate}
        if rate in gains:
            row |= {"gain": mean(gains[rate]), "seeds": len(gains[rate])}
            row |= {"failed": sum(gain is None for gain in gains[rate].values())}
        if len(gains) > 1:
            own = best(gains)
            row |= {"best_rate": own, "best_gain": mean(gains[own])}
        if rate in gains and tuned[method, size]:
            row |= {"share": mean(gains[rate]) / tuned[method, size]}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["method"] != LORA, row["scaled"], row["method"]))


def table(rows: list[dict[str, Any]]) -> str:
    header = ["method", "size", "stored", "best rate", "gain there", "gain at LoRA's", "share"]
    header += ["no gain"]
    cells = []
    for row in rows:
        stored = "" if row["method"] == LORA else "scaled" if row["scaled"] else "as published"
        cells.append([row["method"], f"{row['size']}", stored])
        for name, form in (("best_rate", "g"), ("best_gain", ".3f"), ("gain", ".3f")):
            cells[-1].append(format(row[name], form) if name in row else "not run")
        cells[-1].append(f"{row['share']:.0%}" if "share" in row else "")
        cells[-1].append(f"{row['failed']} of {row['seeds']}" if "failed" in row else "")
    return harness.table([*header], cells)


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spread of the best rates, and what LoRA's rate gives, before and after."""
    found = []
    for scaled in (False, True):
        mine = [row for row in rows if row["scaled"] == scaled and row["method"] != LORA]
        rates = [row["best_rate"] for row in mine if "best_rate" in row]
        shares = [row["share"] for row in mine if "share" in row]
        failed = [(row["failed"], row["seeds"]) for row in mine if "failed" in row]
        if not shares:
            continue
        found.append(
            {
                "scaled": scaled,
                "lora_rate": rows[0]["lora_rate"],
                "best_rates": [min(rates), max(rates)] if rates else None,
                "median_share": statistics.median(shares),
                "worst_share": min(shares),
                "failed": sum(count for count, _ in failed),
                "runs": sum(count for _, count in failed),
            }
        )
    return found


def words(verdict: dict[str, Any]) -> str:
    spread = ""
    if verdict["best_rates"]:
        least, most = verdict["best_rates"]
        spread = f"best rates from {least:g} to {most:g}, a factor of {most / least:.3g}; "
    return (
        f"{'Scaled' if verdict['scaled'] else 'As published'}: {spread}at LoRA's rate "
        f"{verdict['median_share']:.0%} of the tuned gain in the median, "
        f"{verdict['worst_share']:.0%} in the worst case; {verdict['failed']} of {verdict['runs']} "
        "runs there without a gain."
    )


def picture(found: dict[Group, dict[Case, Gains]], path: Path) -> None:
    """Gain against rate, as published on the left and scaled on the right, by task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6 * len(found)), dpi=150, layout="constrained")
    grid = figure.subplots(len(found), 2, sharey="row", squeeze=False)
    names = list(dict.fromkeys(case[0] for cases in found.values() for case in cases))
    for row, ((task, *_), cases) in zip(grid, found.items(), strict=True):
        for axes, scaled in zip(row, (False, True), strict=True):
            for (method, size, stored), gains in cases.items():
                if method != LORA and stored != scaled:
                    continue
                sizes = sorted(case[1] for case in cases if case[0] == method)
                style = {1: ["-"], 2: ["-", ":"]}.get(len({*sizes}), [":", "-", "--"])
                number = sorted({*sizes}).index(size)
                rates = sorted(gains)
                axes.plot(
                    rates,
                    [mean(gains[rate]) for rate in rates],
                    style[min(number, len(style) - 1)],
                    color=COLORS[names.index(method) % len(COLORS)],
                    label=method if style[min(number, len(style) - 1)] == "-" else None,
                    marker="." if len(rates) > 1 else "o",
                )
            title = "rate_scaling=True" if scaled else "as published"
            axes.set(xscale="log", xlabel="learning rate", title=f"{task}: {title}")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("fall of the held-out loss (nats)")
    handles, labels = grid[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path)


def write(path: Path, lines: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write tables beside the lines, and the picture."""
    found = gathered(lines)
    hours = sum(line["seconds"] for line in lines) / 3600
    parts = [
        f"{about['cpu']}, {about['cores']} cores; float32. AdamW without decay, five steps of "
        "warm-up, then linearly to zero; gradients clipped to norm 1. Gain: fall of the loss in "
        "nats on data not trained on, the mean over seeds; a run whose loss is not finite, or has "
        "not fallen, counts as no gain. LoRA's rate is the best of the grid for LoRA of rank 8. "
        "Share: of the best gain of that method and size at any rate, scaled or as published. "
        f"{len(lines)} runs, {hours:.1f} hours, evaluation included."
    ]
    records, judged = [], []
    for (task, targets, steps), cases in found.items():
        rows = summaries(cases)
        found_here = verdicts(rows)
        seeds = sorted(
            {seed for gains in cases.values() for runs in gains.values() for seed in runs}
        )
        parts.append(
            f"## {task}, {steps} steps, {targets}, seeds {', '.join(map(str, seeds))}\n\n"
            + "\n\n".join([*map(words, found_here), table(rows)])
        )
        judged += [{"task": task, **verdict} for verdict in found_here]
        sizes = {
            (line["method"], line["size"]): line["parameters"]
            for line in lines
            if line["task"] == task
        }
        for row in rows:
            trained = sizes[row["method"], row["size"]]
            records.append({"task": task, "parameters": trained, **row})
    page = "\n\n".join(parts) + "\n"
    spent = {"runs": len(lines), "hours": hours}
    harness.report(path.with_suffix(".json"), about, records, page, verdicts=judged, **spent)
    picture(found, path.with_suffix(".png"))
