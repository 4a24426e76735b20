"""Time and error of Tucker decompositions against pyttb and tensorly.

    python benchmarks/tucker.py            # everything, about twenty minutes on two cores
    python benchmarks/tucker.py --quick    # 120 x 120 x 120 only

All peers run in one process on the same array, alternating; every error is measured in float64 on
the arrays that the library returned. What iterates is run with each library's own defaults, and
with one stopping tolerance for all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness
import numpy as np
from tqdm import tqdm

import tnlib

PACKAGES = ["numpy", "scipy", "tensorly", "pyttb"]


@dataclass(frozen=True)
class Case:
    """A tensor to decompose and what is asked of the result."""

    shape: tuple[int, ...]
    rank: int
    dtype: str = "float64"
    eps: float | None = None
    noise: float = 0.01

    @property
    def name(self) -> str:
        asked = f"-> {self.rank}" if self.eps is None else f"eps {self.eps:g}"
        kind = ", noise alone" if math.isinf(self.noise) else ""
        return f"{self.shape[0]}^{len(self.shape)} {self.dtype} {asked}{kind}"


# The stopping tolerance that all who iterate are given beside their own.
TOL = 1e-8
QUICK = [
    Case((120,) * 3, 12),
    Case((120,) * 3, 12, noise=math.inf),
    Case((120,) * 3, 12, eps=0.1),
]
CASES = [
    *QUICK,
    Case((400,) * 3, 32),
    Case((400,) * 3, 32, "float32"),
    Case((400,) * 3, 32, eps=0.1),
    Case((60,) * 4, 10),
]


def decaying(case: Case) -> np.ndarray:
    """A random core between random orthogonal bases whose columns fall off, plus 1 % noise.

    Or noise alone, on which an iteration gains something for long.
    """
    rng = np.random.default_rng(0)
    if math.isinf(case.noise):
        return rng.standard_normal(case.shape).astype(case.dtype)
    core = rng.standard_normal((2 * case.rank,) * len(case.shape))
    for size in case.shape:
        basis = np.linalg.qr(rng.standard_normal((size, 2 * case.rank)))[0]
        basis *= np.arange(1, 2 * case.rank + 1) ** -1.0
        core = np.tensordot(core, basis, axes=((0,), (1,)))
    noise = rng.standard_normal(case.shape)
    core += noise * (case.noise * np.linalg.norm(core) / np.linalg.norm(noise))
    return np.ascontiguousarray(core.astype(case.dtype))


def hosvd(array: np.ndarray, case: Case) -> Any:
    return tuple(tnlib.tucker_hosvd(array, None if case.eps else case.rank, eps=case.eps))


def hooi(array: np.ndarray, case: Case, **options: Any) -> Any:
    return tuple(tnlib.tucker_hooi(array, case.rank, **options))


def data_of(name: str, array: np.ndarray) -> Any:
    """The array as the library takes it; making it is not timed."""
    if name != "pyttb hosvd":
        return array
    import pyttb

    return pyttb.tensor(array)


def pyttb_hosvd(data: Any, case: Case) -> Any:
    import pyttb

    ranks = None if case.eps else np.array([case.rank] * len(case.shape))
    result = pyttb.hosvd(data, case.eps or 0.0, verbosity=-1, ranks=ranks)
    return result.core.data, result.factor_matrices


def pyttb_from_numpy(array: np.ndarray, case: Case) -> Any:
    """From a NumPy array, which pyttb copies to its own memory order first."""
    return pyttb_hosvd(data_of("pyttb hosvd", array), case)


def tensorly_tucker(array: np.ndarray, case: Case, **options: Any) -> Any:
    from tensorly.decomposition import tucker

    return tuple(tucker(array, [case.rank] * array.ndim, **options))


def with_tolerance(run: Callable[..., Any]) -> Callable[[Any, Case], Any]:
    return lambda array, case: run(array, case, tol=TOL)


def peers(case: Case) -> dict[str, Callable[[Any, Case], Any]]:
    """The functions that can do `case`, ours first."""
    found: dict[str, Callable[[Any, Case], Any]] = {"tnlib tucker_hosvd": hosvd}
    if case.eps is None:
        found["tnlib tucker_hooi"] = hooi
        found[f"tnlib tucker_hooi, tol {TOL:g}"] = with_tolerance(hooi)
    if case.eps is None and case.dtype == "float64":
        found["tensorly tucker"] = tensorly_tucker
        found[f"tensorly tucker, tol {TOL:g}"] = with_tolerance(tensorly_tucker)
    if find_spec("pyttb"):
        found["pyttb hosvd"] = pyttb_hosvd
        found["pyttb tensor + hosvd"] = pyttb_from_numpy
    return found


def error_of(array: np.ndarray, result: Any) -> float:
    core, factors = result
    dense = np.asarray(core, np.float64)
    for factor in factors:
        dense = np.tensordot(dense, np.asarray(factor, np.float64), axes=((0,), (1,)))
    dense -= array
    return float(np.linalg.norm(dense) / np.linalg.norm(array.astype(np.float64)))


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    array = decaying(case)
    results: dict[str, Any] = {}
    available = peers(case)

    def runner(name: str) -> Callable[[], None]:
        data = data_of(name, array)
        return lambda: results.__setitem__(name, available[name](data, case))

    small = Case((12,) * len(case.shape), 3, case.dtype, case.eps)
    for name, run in available.items():
        run(data_of(name, decaying(small)), small)
    seconds = harness.alternate({name: runner(name) for name in available}, repeats)
    return [
        {
            "case": case.name,
            "peer": name,
            "seconds": harness.summary(times),
            "error": error_of(array, results[name]),
            "ranks": list(np.shape(results[name][0])),
        }
        for name, times in seconds.items()
    ]


def as_table(records: list[dict[str, Any]]) -> str:
    """All records, with the ratio of each peer's median to that of our HOSVD."""
    ours = {r["case"]: r["seconds"]["median"] for r in records if r["peer"] == "tnlib tucker_hosvd"}
    rows = [
        [
            r["case"],
            r["peer"],
            f"{r['seconds']['median']:.3f}",
            f"{r['seconds']['median'] / ours[r['case']]:.1f}",
            f"{r['error']:.6f}",
            "x".join(map(str, r["ranks"])),
        ]
        for r in records
    ]
    return harness.table(["tensor", "function", "seconds", "x hosvd", "error", "core"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the small tensor")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all peers (default 3)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "tucker.json"
    )
    options = parser.parse_args()
    records: list[dict[str, Any]] = []
    for case in tqdm(QUICK if options.quick else CASES, desc="cases"):
        records += measure(case, options.repeats)
    about = harness.machine(PACKAGES)
    note = (
        f"{about['cpu']}, {about['cores']} cores; medians of {options.repeats} rounds, peers "
        "alternating in one process (one round above 20 s); errors in float64 on what was "
        "returned. tensorly's tucker and tnlib's tucker_hooi iterate, with each library's defaults "
        f"and with tol={TOL:g} for both; the others are direct."
    )
    harness.report(options.output, about, records, f"{note}\n\n{as_table(records)}\n")


if __name__ == "__main__":
    main()
