"""Predicted against measured time of contractions, and how good the plan chosen by time is.

    python benchmarks/roofline.py [--library torch] [--repeats 9]

Rates are measured once. For fifty networks several plans are made: by time, by operations, by
memory, and from the paths of opt_einsum's planners. All are run, alternating. A plan counts as
well chosen where it is within 10 % of the fastest of all plans of its network.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import opt_einsum
import torch
from networks import TWENTY, Problem, bottleneck, lorta, lotr, operator, overlap, sandwich

import tnlib
from tnlib.contraction.network import parsed
from tnlib.contraction.tree import steps_of, tree_of

RESULTS = Path(__file__).parent / "results"
# Predicted seconds beyond which a plan is not run.
LONGEST = 2.0


def fifty() -> dict[str, Problem]:
    """The twenty, and layers at other sizes and numbers of tokens."""
    found = dict(TWENTY)
    for tokens in (1, 32, 4096):
        for rank in (4, 32):
            modes = [8, 8, 12]
            found[f"DoTA 768x768 r{rank}, {tokens}"] = operator(tokens, modes, modes, rank)
    for tokens in (1, 32, 512):
        for rank in (4, 16, 64):
            name = f"MPO 1024x4096 r{rank}, {tokens}"
            found[name] = operator(tokens, [4, 4, 8, 8], [8] * 4, rank)
    for tokens in (1, 64, 4096):
        found[f"LoRTA 768 r8, {tokens}"] = lorta(tokens, 768, 12, 64, 8)
        found[f"LoTR 768 r16, {tokens}"] = lotr(tokens, 768, 3072, 16)
        found[f"LoRETTA rep 768 r16, {tokens}"] = bottleneck(
            tokens, [8, 8, 12], [8], [8, 8, 12], 16
        )
    for length, rank in ((8, 64), (8, 128), (30, 8)):
        found[f"MPS {length} r{rank}"] = overlap(length, 2, rank)
        found[f"MPS MPO MPS {length} r{rank}"] = sandwich(length, 2, rank, 4)
    return dict(itertools.islice(found.items(), 50))


def candidates(problem: Problem, rates: tnlib.Roofline) -> dict[str, tnlib.Plan]:
    """Plans of several origins, those with the same steps once."""
    equation, shapes = problem
    options: dict[str, Any] = {"roofline": rates, "requires_grad": ()}
    found = {
        minimize: tnlib.plan_contraction(equation, *shapes, minimize=minimize, **options)
        for minimize in ("time", "flops", "memory")
    }
    network = parsed(equation, shapes)
    for name in ("auto", "greedy", "random-greedy"):
        path = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=name)[0]
        steps = steps_of(network, tree_of(len(shapes), path))
        plan = tnlib.Plan(network, steps, rates.itemsize, requires_grad=())
        found[name] = replace(plan, seconds=plan.predicted(rates))
    unique: dict[Any, str] = {}
    for name, plan in found.items():
        unique.setdefault(plan.steps, name)
    return {name: found[name] for name in unique.values()}


def measured(problem: Problem, plans: dict[str, tnlib.Plan], library: str, repeats: int) -> Any:
    """Median seconds of every plan that is not predicted to take too long."""
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(s).astype(np.float32) for s in problem[1]]
    if library == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]
    runs = {
        name: (lambda plan=plan: plan(*arrays))
        for name, plan in plans.items()
        if (plan.seconds or 0.0) < LONGEST
    }
    for run in runs.values():
        run()
    return {name: statistics.median(s) for name, s in harness.alternate(runs, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="torch", choices=["torch", "numpy"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or RESULTS / f"roofline_{arguments.library}.json"
    rates = tnlib.measure_roofline(library=arguments.library)
    records = []
    for name, problem in itertools.islice(fifty().items(), arguments.networks):
        plans = candidates(problem, rates)
        seconds = measured(problem, plans, arguments.library, arguments.repeats)
        about = [
            {"plan": key, "predicted": plans[key].seconds, "measured": seconds[key]}
            | {"flops": plans[key].flops, "steps": len(plans[key].steps)}
            for key in seconds
        ]
        records.append({"network": name, "plans": about})
        print(name, flush=True)
    about = harness.machine(["tnlib", "opt_einsum", "numpy", "torch"]) | {"rates": asdict(rates)}
    harness.report(output, about, records, text(records, arguments.library))
    picture(records, output.with_suffix(".png"), arguments.library)


def text(records: list[dict[str, Any]], library: str) -> str:
    rows = []
    for record in records:
        plans = {entry["plan"]: entry for entry in record["plans"]}
        fastest = min(plans.values(), key=lambda entry: entry["measured"])
        own = plans.get("time")
        if own is None:
            continue
        flops = plans.get("flops", own)
        rows.append(
            [
                record["network"],
                str(len(plans)),
                f"{1e3 * own['predicted']:.3f}",
                f"{1e3 * own['measured']:.3f}",
                f"{own['predicted'] / own['measured']:.2f}",
                f"{own['measured'] / fastest['measured']:.2f}",
                fastest["plan"],
                f"{flops['measured'] / fastest['measured']:.2f}",
            ]
        )
    header = ["network", "plans", "predicted ms", "measured ms", "ratio", "over fastest"]
    table = harness.table([*header, "fastest", "flops plan over fastest"], rows)
    return f"{library}, float32.\n\n{table}\n\n{summary(records)}\n"


def summary(records: list[dict[str, Any]]) -> str:
    every = [entry for record in records for entry in record["plans"]]
    ratios = [entry["predicted"] / entry["measured"] for entry in every]
    within = sum(0.5 <= ratio <= 2.0 for ratio in ratios)
    lines = [
        f"{len(every)} plans of {len(records)} networks: predicted within a factor of 2 of the "
        f"measured time in {within} ({100 * within / len(every):.0f} %), median ratio "
        f"{statistics.median(ratios):.2f}."
    ]
    for name in ("time", "flops"):
        near = [over(record, name) <= 1.1 for record in records]
        lines.append(
            f"The plan by {name} is within 10 % of the fastest of all plans in "
            f"{sum(near)} of {len(near)}."
        )
    return "\n".join(lines)


def over(record: dict[str, Any], name: str) -> float:
    """Measured time of the plan by `name` over that of the fastest plan."""
    plans = {entry["plan"]: entry["measured"] for entry in record["plans"]}
    return plans.get(name, plans.get("time", float("inf"))) / min(plans.values())


def picture(records: list[dict[str, Any]], path: Path, library: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 5), layout="constrained")
    colours = {"time": "C3", "flops": "C0", "memory": "C2"}
    for label in ("others", "memory", "flops", "time"):
        points = [
            (1e3 * entry["measured"], 1e3 * entry["predicted"])
            for record in records
            for entry in record["plans"]
            if entry["plan"] == label or (label == "others" and entry["plan"] not in colours)
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.loglog(x, y, "o", ms=4, alpha=0.7, color=colours.get(label, "0.6"), label=label)
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends, "k-", lw=1)
    axes.fill_between(ends, ends / 2, ends * 2, color="0.9", zorder=0, label="factor of 2")
    axes.set(xlim=ends, xlabel="measured time of a call (ms)", ylabel="predicted time (ms)")
    axes.set_title(f"{library}, float32: plans of {len(records)} networks")
    axes.legend(title="planned by")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
