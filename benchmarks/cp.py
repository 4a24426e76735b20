"""Time of CP decompositions to the same exact error, against pyttb and tensorly.

    python benchmarks/cp.py            # everything, about half an hour on two cores
    python benchmarks/cp.py --quick    # the small tensors only

Every peer starts from the same random factors. It runs until it stops by itself (a change of the
error below 1e-6), or on the collinear tensors until its error is below 1e-6. The error e of what it
returned is measured in float64; tnlib is then timed on the same tensor until it is at most e. So
each line compares one peer with tnlib at that peer's own result. `cp_defaults.py` compares what
the libraries' defaults give.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from cp_cases import CASES, PACKAGES, QUICK, Case, Peer, error_of, peers, start, tensor
from tqdm import tqdm

import tnlib

MAX_SWEEPS = 20_000


def ours(array: np.ndarray, case: Case, error: float, init: tnlib.CP | None) -> tnlib.CP:
    """tnlib until its error is at most `error`: its defaults, or ALS from the peers' start."""
    reached = error * (1 + 1e-9)
    if init is None:
        return tnlib.cp_als(array, case.rank, callback=lambda _, e: e > reached)
    return tnlib.cp_als(
        array,
        case.rank,
        method="als",
        init=init,
        compress=True,
        tol=0.0,
        max_iter=1000,
        callback=lambda _, e: e > reached,
    )


def at_most(error: float, array: np.ndarray, result: tnlib.CP) -> float:
    """Our error, measured like a peer's; it must be what it was compared at."""
    own = error_of(array, tuple(result))
    if own > error * (1 + 1e-6):
        raise RuntimeError(f"tnlib stopped at {own}, the peer has {error}")
    return own


def sweeps_needed(peer: Peer, array: np.ndarray, init: tnlib.CP, target: float) -> int | None:
    """Sweeps, to one in fifty, after which a peer is below `target`; None if it never is."""
    data = peer.data(array)

    def reached(sweeps: int) -> bool:
        return error_of(array, peer.run(data, init, 0.0, sweeps)) <= target

    low, high = 0, 50
    while not reached(high):
        if high >= MAX_SWEEPS:
            return None
        low, high = high, 2 * high
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    array, records = tensor(case), []
    for name, peer in peers().items():
        init = start(case, seed=1)
        small = Case((6,) * array.ndim, 2)
        peer.run(peer.data(tensor(small)), start(small, 0), 1e-6, 2)
        data = peer.data(array)
        sweeps, tol = 1000, 1e-6
        if case.target is not None:
            found = sweeps_needed(peer, array, init, case.target)
            sweeps, tol = found or MAX_SWEEPS, 0.0
        theirs, defaults, als = [], [], []
        for _ in range(repeats):
            begin = time.perf_counter()
            result = peer.run(data, init, tol, sweeps)
            theirs.append(time.perf_counter() - begin)
            error = error_of(array, result) if case.target is None else case.target
            begin = time.perf_counter()
            best = ours(array, case, error, None)
            defaults.append(time.perf_counter() - begin)
            if case.target is None:
                begin = time.perf_counter()
                same = ours(array, case, error, init)
                als.append(time.perf_counter() - begin)
        records.append(
            {
                "case": case.name,
                "peer": name,
                "seconds": harness.summary(theirs),
                "error": error_of(array, result),
                "tnlib seconds": harness.summary(defaults),
                "tnlib error": at_most(error, array, best),
                "tnlib iterations": best.info.n_iter,
                "tnlib als seconds": harness.summary(als) if als else None,
                "tnlib als error": at_most(error, array, same) if als else None,
            }
        )
    return records


def as_table(records: list[dict[str, Any]]) -> str:
    rows = []
    for r in records:
        median, mine = r["seconds"]["median"], r["tnlib seconds"]["median"]
        als = r["tnlib als seconds"]
        rows.append(
            [
                r["case"],
                r["peer"],
                f"{median:.3f}",
                f"{r['error']:.3g}",
                f"{mine:.3f}",
                f"{r['tnlib error']:.3g}",
                f"{median / mine:.1f}",
                "-" if als is None else f"{als['median']:.3f}",
                "-" if als is None else f"{r['tnlib als error']:.3g}",
                "-" if als is None else f"{median / als['median']:.1f}",
            ]
        )
    header = [
        "tensor",
        "peer",
        "s",
        "error",
        "tnlib s",
        "error",
        "ratio",
        "ALS s",
        "error",
        "ratio",
    ]
    return harness.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the small tensors")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of every pair (default 3)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "cp.json"
    )
    options = parser.parse_args()
    records: list[dict[str, Any]] = []
    for case in tqdm(QUICK if options.quick else CASES, desc="cases"):
        if not math.isinf(case.noise):
            records += measure(case, options.repeats)
    about = harness.machine(PACKAGES)
    note = (
        f"{about['cpu']}, {about['cores']} cores; float64; medians of {options.repeats} rounds, "
        "peer and tnlib alternating in one process. `tnlib` is cp_als with its defaults (HOSVD "
        "start, auto), `ALS` is cp_als(method='als', compress=True) from the peer's random start, "
        "both stopped as soon as their error is at most the peer's."
    )
    harness.report(options.output, about, records, f"{note}\n\n{as_table(records)}\n")


if __name__ == "__main__":
    main()
