"""Contraction: operations that planners find, and what a planned call costs beside its products.

    python benchmarks/contraction.py [--networks 20] [--repeats 50]

Every planner gets the time that ours took on the same network. Calls run plans on the same arrays,
alternating: ours, ``opt_einsum.contract_expression`` and ``torch.einsum`` with its own order.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness
import numpy as np
import opt_einsum
import torch
from networks import TWENTY, Problem

import tnlib
from tnlib.contraction import planner

RESULT = Path(__file__).parent / "results" / "contraction.json"
# Operations beyond which calls are not timed, and operands beyond which torch.einsum is not asked.
MOST, WIDEST = 2e11, 30
# Seconds for all calls of one network.
PATIENCE = 10.0


def cost(problem: Problem, path: Any) -> float:
    equation, shapes = problem
    report = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=path)[1]
    return float(report.opt_cost)


def plan(problem: Problem) -> tuple[tnlib.Plan, float]:
    """Our plan and the seconds of the search, without a remembered one."""
    planner._planned.cache_clear()
    start = time.perf_counter()
    found = tnlib.plan_contraction(problem[0], *problem[1])
    return found, time.perf_counter() - start


def searched(problem: Problem, seconds: float) -> dict[str, float]:
    """Operations that every other planner finds in so many seconds."""
    found = {"auto": cost(problem, "auto"), "greedy": cost(problem, "greedy")}
    finder = opt_einsum.RandomGreedy(max_time=max(seconds, 1e-3), max_repeats=10**6)
    found["random-greedy"] = cost(problem, finder)
    if find_spec("cotengra") is not None:
        import cotengra

        equation, shapes = problem
        terms, output = equation.split("->")
        inputs = [tuple(term) for term in terms.split(",")]
        sizes = dict(zip("".join(terms.split(",")), (n for s in shapes for n in s), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search = cotengra.HyperOptimizer(
                max_time=seconds, max_repeats=10**6, parallel=False, progbar=False
            )
            path = search(inputs, tuple(output), sizes)
        found["cotengra"] = cost(problem, [tuple(map(int, pair)) for pair in path])
    return found


def calls(problem: Problem, ours: tnlib.Plan, library: str, repeats: int) -> dict[str, float]:
    """Median seconds of a call."""
    equation, shapes = problem
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    if library == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]
    same = opt_einsum.contract_expression(equation, *shapes, optimize=ours.path)
    auto = opt_einsum.contract_expression(equation, *shapes, optimize="auto")
    runs = {
        "tnlib": lambda: ours(*arrays),
        "same path": lambda: same(*arrays),
        "auto": lambda: auto(*arrays),
    }
    letters = set(equation) - set(",->")
    if library == "torch" and all(s.isascii() for s in letters) and len(shapes) <= WIDEST:
        runs["torch.einsum"] = lambda: torch.einsum(equation, *arrays)
    start = time.perf_counter()
    for run in runs.values():
        run()
    rounds = int(PATIENCE / (time.perf_counter() - start))
    repeats = max(5, min(repeats, rounds))
    return {name: statistics.median(s) for name, s in harness.alternate(runs, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=len(TWENTY))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    records = []
    for name, problem in list(TWENTY.items())[: arguments.networks]:
        ours, seconds = plan(problem)
        found = searched(problem, seconds)
        record: dict[str, Any] = {
            "network": name,
            "operands": len(problem[1]),
            "search_seconds": seconds,
            "flops": ours.flops,
            "peak_bytes": ours.peak_bytes,
            "others": found,
            "calls": {},
        }
        if max(found["auto"], ours.flops) < MOST:
            for library in ("numpy", "torch"):
                record["calls"][library] = calls(problem, ours, library, arguments.repeats)
        records.append(record)
        print(name, f"{seconds:.2f} s", flush=True)
    about = harness.machine(["tnlib", "opt_einsum", "cotengra", "numpy", "torch"])
    harness.report(arguments.output, about, records, text(records))


def text(records: list[dict[str, Any]]) -> str:
    planners = ["auto", "greedy", "random-greedy", "cotengra"]
    rows = []
    for record in records:
        others = record["others"]
        ratios = [f"{others[p] / record['flops']:.3f}" if p in others else "-" for p in planners]
        spent = f"{record['search_seconds']:.3f}"
        flops = f"{record['flops']:.3e}"
        rows.append([record["network"], str(record["operands"]), spent, flops, *ratios])
    first = harness.table(["network", "operands", "search s", "flops", *planners], rows)
    timed = []
    for record in records:
        for library, seconds in record["calls"].items():
            own = seconds["tnlib"]
            cells = [f"{seconds[k] / own:.2f}" if k in seconds else "-" for k in CALLS]
            timed.append([record["network"], library, f"{1e6 * own:.0f}", *cells])
    second = harness.table(["network", "arrays", "tnlib us", *CALLS], timed)
    parts = [
        "Operations of each planner over ours (above 1: ours needs fewer).",
        first,
        "Seconds of a call over ours: contract_expression with our path and with its own, and "
        "torch.einsum (above 1: ours is faster).",
        second,
        summary(records),
    ]
    return "\n\n".join(parts) + "\n"


CALLS = ["same path", "auto", "torch.einsum"]


def summary(records: list[dict[str, Any]]) -> str:
    above = sum(record["flops"] > record["others"]["auto"] for record in records)
    best = [record["flops"] / min(record["others"].values()) for record in records]
    ratios = [
        seconds["tnlib"] / seconds["same path"]
        for record in records
        for seconds in record["calls"].values()
    ]
    lines = [
        f"Operations above opt_einsum's auto: {above} of {len(records)}; over the best of all "
        f"others: at most {max(best):.3f}, geometric mean {mean(best):.3f}.",
    ]
    if ratios:
        lines.append(
            f"Call over contract_expression with the same path: median "
            f"{statistics.median(ratios):.2f}, at most {max(ratios):.2f}."
        )
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


if __name__ == "__main__":
    main()
