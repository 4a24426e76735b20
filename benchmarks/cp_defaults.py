"""Time and error of CP decompositions with every library's defaults, and with one tolerance.

    python benchmarks/cp_defaults.py            # everything, some 15 minutes on two cores
    python benchmarks/cp_defaults.py --quick    # the small tensors only

All run in one process on the same tensor, alternating. With one tolerance all start from the same
random factors. Every error is measured in float64 on the arrays that the library returned, so a
faster library that stopped earlier shows.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from cp_cases import CASES, PACKAGES, QUICK, Case, error_of, peers, start, tensor
from tqdm import tqdm

import tnlib

# Stopping tolerance and sweeps of the runs from one start.
TOL, SWEEPS = 1e-6, 1000


def settings(case: Case) -> dict[str, dict[str, Callable[[Any], Any]]]:
    """What every library is run with: its defaults, and one tolerance from one start."""
    begin, rank = start(case, seed=1), case.rank
    same = {"init": begin, "tol": TOL, "max_iter": SWEEPS}
    defaults: dict[str, Callable[[Any], Any]] = {"tnlib": lambda data: tnlib.cp_als(data, rank)}
    equal: dict[str, Callable[[Any], Any]] = {
        "tnlib": lambda data: tnlib.cp_als(data, rank, **same),
        "tnlib als": lambda data: tnlib.cp_als(data, rank, method="als", **same),
    }
    for name, peer in peers().items():
        defaults[name] = functools.partial(by_default, name, rank)
        equal[name] = lambda data, peer=peer: peer.run(data, begin, TOL, SWEEPS)
    return {"defaults": defaults, f"tol {TOL:g}, one start": equal}


def by_default(name: str, rank: int, data: Any) -> tuple[Any, Any]:
    """A peer with nothing but the number of terms."""
    if name == "tensorly parafac":
        from tensorly.decomposition import parafac

        return tuple(parafac(data, rank))
    import pyttb

    np.random.seed(0)  # pyttb draws its start from the global generator
    model, _, _ = pyttb.cp_als(data, rank, printitn=0)
    return model.weights, model.factor_matrices


def side_by_side(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Time and error of every library under both settings, alternating."""
    array, records = tensor(case), []
    for setting, runs in settings(case).items():
        found: dict[str, Any] = {}
        data = {name: peers()[name].data(array) if name in peers() else array for name in runs}

        def runner(name: str, run: Any, data: Any = data, found: Any = found) -> Any:
            return lambda: found.__setitem__(name, run(data[name]))

        seconds = harness.alternate(
            {name: runner(name, run) for name, run in runs.items()}, repeats
        )
        records += [
            {
                "case": case.name,
                "setting": setting,
                "library": name,
                "seconds": harness.summary(times),
                "error": error_of(array, tuple(found[name])),
            }
            for name, times in seconds.items()
        ]
    return records


def side_table(records: list[dict[str, Any]]) -> str:
    """All records, with the ratio of each median to that of tnlib under the same setting."""
    ours = {
        (r["case"], r["setting"]): r["seconds"]["median"]
        for r in records
        if r["library"] == "tnlib"
    }
    rows = [
        [
            r["case"],
            r["setting"],
            r["library"],
            f"{r['seconds']['median']:.3f}",
            f"{r['seconds']['median'] / ours[r['case'], r['setting']]:.2f}",
            f"{r['error']:.3g}",
        ]
        for r in records
    ]
    return harness.table(["tensor", "setting", "library", "s", "x tnlib", "error"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the small tensors")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all (default 3)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "cp_defaults.json"
    )
    options = parser.parse_args()
    records: list[dict[str, Any]] = []
    for case in tqdm(QUICK if options.quick else CASES, desc="cases"):
        records += side_by_side(case, options.repeats)
    about = harness.machine(PACKAGES)
    note = (
        f"{about['cpu']}, {about['cores']} cores; float64; medians of {options.repeats} rounds, "
        "all alternating in one process; errors in float64 on what was returned."
    )
    harness.report(options.output, about, records, f"{note}\n\n{side_table(records)}\n")


if __name__ == "__main__":
    main()
