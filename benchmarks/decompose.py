"""Time, error and memory of matrix-to-MPO decompositions against other libraries.

    python benchmarks/decompose.py                 # everything, about half an hour on two cores
    python benchmarks/decompose.py --quick         # 1024 x 1024 and the real weight only
    python benchmarks/decompose.py --model FOLDER  # the real weight from another safetensors model

All peers run in one process on the same matrix, alternating; the error of each is measured on the
cores it returned, in float64. Peak memory is that of one call beyond its input, in a process of its
own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import harness
import peers
from peers import Case

import tnlib

PACKAGES = ["numpy", "scipy", "torch", "tensorly"]
REAL_WEIGHT = "encoder.layer.0.intermediate.dense.weight"


def cases(shape: tuple[int, int], name: str, eps: tuple[float, ...]) -> list[Case]:
    """One matrix at ranks 16 and 64 and at every tolerance, in its default modes."""
    order = 4 if min(shape) >= 4096 else 3
    rows, columns = (tnlib.factorize(width, order) for width in shape)
    wanted = [{"rank": 16}, {"rank": 64}, *({"eps": value} for value in eps)]
    return [Case(name, shape, rows, columns, **limits) for limits in wanted]


def tolerances(shape: tuple[int, int]) -> list[tuple[np.ndarray, list[Case]]]:
    """Matrices whose spectra are known at every split, at three tolerances.

    A power law of one bond, where the split is the truncated SVD, and the kernel 1 / (1 + |i - j|),
    whose unfoldings all decay.
    """
    power, (m, n) = power_law(shape), shape
    i, j = np.ogrid[:m, :n]
    kernel = (1 / (1 + abs(i - j))).astype(np.float32)
    rows, columns = (tnlib.factorize(width, 5) for width in shape)
    values = (0.5, 0.1, 1e-3)
    name = f"{m}x{n}"
    bond = [Case(f"power law, one bond, {name}", shape, (m, 1), (1, n), eps=eps) for eps in values]
    modes = [Case(f"kernel, five cores, {name}", shape, rows, columns, eps=eps) for eps in values]
    return [(power, bond), (kernel, modes)]


def power_law(shape: tuple[int, int]) -> np.ndarray:
    """Singular values k^-0.7 between random orthogonal bases, float32."""
    rng = np.random.default_rng(0)
    side = min(shape)
    left, right = (
        np.linalg.qr(rng.standard_normal((width, side), dtype=np.float32))[0] for width in shape
    )
    return (left * np.arange(1, side + 1, dtype=np.float32) ** -0.7) @ right.T


def real_weight(model: Path | None) -> np.ndarray:
    """One weight of a model folder, MiniLM's first feed-forward weight by default."""
    from safetensors.numpy import load_file

    if model is None:
        import assets

        model = assets.fetch("minilm")
    return load_file(model / "model.safetensors")[REAL_WEIGHT]


def error_of(cores: list[Any], matrix: np.ndarray) -> float:
    """Relative error of returned cores in float64, a block of rows at a time."""
    dense = tnlib.MPO([np.asarray(core, np.float64) for core in cores]).to_matrix()
    squared = sum(
        float(np.sum((matrix[k : k + 512].astype(np.float64) - dense[k : k + 512]) ** 2))
        for k in range(0, matrix.shape[0], 512)
    )
    return float(np.sqrt(squared / np.sum(matrix.astype(np.float64) ** 2)))


def prepare(path: str, case: Case, name: str) -> Any:
    """Load the matrix and warm the library up; return the call whose memory is measured."""
    run = peers.available(case)[name]
    warm_up(run, case)
    matrix = np.load(path)
    return lambda: run(matrix, case)


def warm_up(run: Any, case: Case) -> None:
    """Pay for imports and thread pools before anything is measured."""
    small = Case("warm-up", (64, 64), (4, 4, 4), (4, 4, 4), case.rank, case.eps)
    run(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), small)


def measure(case: Case, matrix: np.ndarray, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Every peer on one case; large matrices are repeated less, and their memory is measured
    for tnlib and tensorly only."""
    large = matrix.size > 2**24
    repeats = 1 if large else repeats
    path = folder / "matrix.npy"
    np.save(path, matrix)
    found: dict[str, list[Any]] = {}

    def runner(name: str, run: Any) -> Any:
        return lambda: found.__setitem__(name, run(matrix, case))

    available = peers.available(case)
    for run in available.values():
        warm_up(run, case)
    runs = {name: runner(name, run) for name, run in available.items()}
    seconds = harness.alternate(runs, repeats)
    records = []
    for name, times in seconds.items():
        light = matrix.size <= 2**22 or name in ("tnlib", "tnlib (torch)", "tensorly")
        memory = harness.peak_memory(prepare, str(path), case, name) if light else None
        records.append(
            {
                "matrix": case.name,
                "shape": case.shape,
                "modes": [case.row_dims, case.col_dims],
                "rank": case.rank,
                "eps": case.eps,
                "peer": name,
                "seconds": harness.summary(times),
                "error": error_of(found[name], matrix),
                "values": sum(core.size for core in found[name]),
                "peak_over_input": None if memory is None else memory / matrix.nbytes,
            }
        )
    return records


def as_table(records: list[dict[str, Any]]) -> str:
    """All records, with the ratio of each peer's median to ours."""
    ours = {
        (r["matrix"], r["rank"], r["eps"]): r["seconds"]["median"]
        for r in records
        if r["peer"] == "tnlib"
    }
    rows = []
    for r in records:
        median, memory = r["seconds"]["median"], r["peak_over_input"]
        rows.append(
            [
                r["matrix"],
                f"rank {r['rank']}" if r["rank"] else f"eps {r['eps']:g}",
                r["peer"],
                f"{median:.3f}",
                f"{median / ours[r['matrix'], r['rank'], r['eps']]:.1f}",
                f"{r['error']:.6f}",
                f"{r['values']:,}",
                "-" if memory is None else f"{memory:.1f}",
            ]
        )
    header = ["matrix", "asked", "library", "seconds", "x tnlib", "error", "values", "memory"]
    return harness.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the small matrices")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all peers (default 3)")
    parser.add_argument("--model", type=Path, help="model folder with model.safetensors")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "decompose.json"
    )
    options = parser.parse_args()

    real = real_weight(options.model)
    m, n = real.shape
    small, large = (1024, 1024), [(4096, 4096), (4096, 11008)]
    plan = [
        (lambda: power_law(small), cases(small, "power law 1024x1024", (0.5, 0.1, 1e-3))),
        (lambda: real, cases(real.shape, f"real weight {m}x{n}", (0.5, 0.1))),
        *((lambda found=found: found[0], found[1]) for found in tolerances(small)),
    ]
    if not options.quick:
        for shape in large:
            name = f"power law {shape[0]}x{shape[1]}"
            plan.append((lambda shape=shape: power_law(shape), cases(shape, name, (0.5,))))
    records: list[dict[str, Any]] = []
    progress = tqdm(total=sum(len(wanted) for _, wanted in plan), desc="cases")
    with tempfile.TemporaryDirectory() as folder:
        for make, wanted in plan:
            matrix = np.ascontiguousarray(make())
            for case in wanted:
                records += measure(case, matrix, options.repeats, Path(folder))
                progress.update()
    progress.close()
    about = harness.machine(PACKAGES)
    note = (
        f"{about['cpu']}, {about['cores']} cores; float32; medians of {options.repeats} rounds "
        "(1 for the largest matrix and above 20 s), peers alternating in one process; memory is "
        "the peak of one call beyond its input, in units of the input."
    )
    text = f"{note}\n\n{as_table(records)}\n"
    harness.report(options.output, about, records, text)


if __name__ == "__main__":
    main()
