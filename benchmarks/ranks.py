"""Rank profiles of a model's weights, and one budget for all of them against equal ranks.

    python benchmarks/ranks.py --model FOLDER [--weights NAME ...] [--share 0.25]

FOLDER holds ``model.safetensors`` as Hugging Face writes it. By default five weights of a Llama
model are read, one of each kind. The picture has a profile of each; the table compares ranks that
are allocated with equal ones at the same number of values, by the errors of the decompositions.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import harness
import numpy as np
from safetensors import safe_open
from tqdm import tqdm

import tnlib

RESULT = Path(__file__).parent / "results" / "ranks.json"
# So that curves that lie on each other are seen.
STYLES = ("-", "-", "-", "-", "--")
LLAMA = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.15.self_attn.v_proj.weight",
    "model.layers.15.mlp.up_proj.weight",
    "model.layers.29.mlp.down_proj.weight",
]


def read(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        missing = sorted(set(names) - set(file.keys()))
        if missing:
            raise SystemExit(f"{folder} has no weights {', '.join(missing)}")
        return {name: file.get_tensor(name).astype(np.float32) for name in names}


def layers(folder: Path) -> list[str]:
    """Names of all matrices in the layers of a model."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = [name for name in sorted(file.keys()) if "layers." in name]
        return [name for name in names if len(file.get_slice(name).get_shape()) == 2]


def short(name: str) -> str:
    return name.removeprefix("model.layers.").removesuffix(".weight").replace("self_attn.", "")


def measured(weights: dict[str, np.ndarray], ranks: dict[str, Any], format: str) -> Any:
    """Error of all decompositions together, relative to all weights, and their values."""
    decompose = {"mpo": tnlib.mpo_decompose, "tt": tnlib.tt_svd}[format]
    lost = total = 0.0
    values = 0
    for name, W in weights.items():
        if ranks[name] is None:
            total, values = total + float(np.linalg.norm(W)) ** 2, values + W.size
            continue
        found = decompose(W, ranks[name])
        norm = float(np.linalg.norm(W))
        lost += ((found.error or 0.0) * norm) ** 2
        total += norm**2
        values += found.n_params
    return math.sqrt(lost / total), values


def compared(weights: dict[str, np.ndarray], share: float, format: str) -> dict[str, Any]:
    """Measured errors of allocated and of equal ranks at one budget."""
    budget = int(share * sum(W.size for W in weights.values()))
    found = tnlib.allocate_ranks(weights, budget, format=format)
    allocated, values = measured(weights, found.ranks, format)
    level, level_values = measured(weights, found.equal_ranks, format)
    return {
        "format": format,
        "share": share,
        "budget": budget,
        "allocated": allocated,
        "values": values,
        "equal": level,
        "equal_values": level_values,
        "estimate": found.estimate,
        "ranks": {short(name): ranks for name, ranks in found.ranks.items()},
        "equal_ranks": {short(name): ranks for name, ranks in found.equal_ranks.items()},
    }


def picture(profiles: dict[str, tnlib.RankProfile], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.5), layout="constrained")
    for (name, profile), style in zip(profiles.items(), itertools.cycle(STYLES), strict=False):
        rows, columns = profile.shape
        profile.plot(axes, label=f"{short(name)} ({rows} x {columns})")
        axes.get_lines()[-1].set_linestyle(style)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="values, as a share of the matrix", ylabel="relative error"
    )
    axes.set_title("MPO of real weights: the error lies in the band")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def text(records: list[dict[str, Any]], profiles: dict[str, tnlib.RankProfile]) -> str:
    rows = [
        [
            f"{record['format']}, {record['weights']} weights",
            f"{record['share']:.2f}",
            f"{record['equal']:.4f}",
            f"{record['allocated']:.4f}",
            f"{100 * (1 - (record['allocated'] / record['equal']) ** 2):.1f} %",
            f"{record['values'] / record['budget']:.3f}",
            f"{record['equal_values'] / record['budget']:.3f}",
        ]
        for record in records
    ]
    header = ["format", "share of values", "equal", "allocated", "squared error less"]
    header += ["budget used", "by equal"]
    first = harness.table(header, rows)
    points = (0.05, 0.1, 0.25, 0.5, 0.9)
    lines = []
    for name, profile in profiles.items():
        dense = math.prod(profile.shape)
        cells = []
        for share in points:
            ranks = profile.best_ranks(max_params=int(share * dense))
            cells.append("{:.3f}-{:.3f}".format(*profile.spectra.bounds(ranks)))
        lines.append([short(name), "x".join(map(str, profile.shape)), *cells])
    second = harness.table(["weight", "shape", *(f"{share:g}" for share in points)], lines)
    return (
        "Relative error of all weights together, measured, at the same number of values: equal "
        f"ranks and allocated ones.\n\n{first}\n\nBounds of the error of each weight at a share "
        f"of its values, ranks chosen for it alone.\n\n{second}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", default=LLAMA)
    parser.add_argument(
        "--all", action="store_true", help="allocate over all 2-D layer weights too"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    weights = read(arguments.model, arguments.weights)
    profiles = {name: tnlib.rank_profile(W) for name, W in tqdm(weights.items(), desc="profiles")}
    sets = [weights]
    if arguments.all:
        sets.append(read(arguments.model, layers(arguments.model)))
    records = []
    for chosen in sets:
        for format in ("mpo", "tt"):
            for share in (0.05, 0.1, 0.25, 0.5):
                record = compared(chosen, share, format)
                records.append(record | {"weights": len(chosen)})
                print(format, len(chosen), share, record["equal"], record["allocated"], flush=True)
    about = harness.machine(["tnlib", "numpy", "scipy"])
    harness.report(arguments.output, about, records, text(records, profiles))
    picture(profiles, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
