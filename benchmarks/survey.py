"""Surveys of checkpoints: time and memory, beside tensorly and WeightWatcher on the same weights.

    python benchmarks/survey.py --model FOLDER [--rounds 3] [--layers 4]

FOLDER is a checkpoint in safetensors. Three parts: the whole checkpoint by the command, with its
peak memory; the matrices of three layers by tnlib, tensorly (its singular values and every
decomposition whose error the survey tells) and, where it is installed, WeightWatcher (``analyze``,
spectra alone), alternating; and a sharded bfloat16 checkpoint of `--layers` layers of
Llama 7B's shapes, with one worker and with two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from tensorly.decomposition import tensor_train, tensor_train_matrix

import tnlib
from tnlib.surveys.formats import modes_of
from tnlib.weights.opening import open_weights

RESULT = Path(__file__).parent / "results" / "survey.json"
SHAPES = ("mpo-2", "mpo-3", "tt-4")
SEVEN_B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


def timed_command(*arguments: str) -> tuple[float, int]:
    """Seconds of a command, and the largest sum of resident bytes of its processes."""
    begin = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}")
    return time.perf_counter() - begin, peak


def resident(pid: int) -> int:
    """Bytes of a process and all that it started; what they share counts once (PSS)."""
    total = 0
    for one in family(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return 1024 * total


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = Path(f"/proc/{parent}/task").iterdir()
            found += [int(c) for t in tasks for c in (t / "children").read_text().split()]
        except OSError:
            continue
    return found


def points(matrix: np.ndarray[Any, Any]) -> list[tuple[str, list[int]]]:
    """The decompositions that a survey tells the error of: mode shapes and ranks."""
    record = tnlib.survey({"w": matrix}, shapes=SHAPES, progress=False).of("matrix")[0]
    return [
        (curve["shape"], [1, *ranks, 1]) for curve in record["formats"] for ranks in curve["ranks"]
    ]


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the libraries for three layers, alternating."""
    source = open_weights(folder)
    names = [n for n, t in source.tensors.items() if len(t.shape) == 2 and ".layers." in n]
    layers = sorted({int(n.split(".layers.")[1].split(".")[0]) for n in names})
    some = {layers[0], layers[len(layers) // 2], layers[-1]}
    chosen = [n for n in names if int(n.split(".layers.")[1].split(".")[0]) in some]
    weights = {f"w{k}": source.tensors[n].read() for k, n in enumerate(chosen)}
    wanted = {name: points(matrix) for name, matrix in weights.items()}

    def by_tensorly() -> None:
        for name, matrix in weights.items():
            np.linalg.svd(matrix, compute_uv=False)
            for shape, ranks in wanted[name]:
                rows, columns = modes_of(shape, *matrix.shape) or ((), ())
                tensor = matrix.reshape(*rows, *columns)
                (tensor_train_matrix if shape[0] == "m" else tensor_train)(tensor, ranks)

    runs: dict[str, Any] = {
        "tnlib": lambda: tnlib.survey(weights, shapes=SHAPES, progress=False),
        "tensorly": by_tensorly,
    }
    watcher = watched(weights)
    if watcher is not None:
        runs["tnlib, spectra alone"] = lambda: tnlib.survey(weights, shapes=[], progress=False)
        runs["WeightWatcher"] = watcher
    seconds = harness.alternate(runs, rounds, patience=600)
    return {
        "matrices": len(weights),
        "decompositions": sum(map(len, wanted.values())),
        "seconds": {name: sorted(spent) for name, spent in seconds.items()},
    }


def watched(weights: dict[str, np.ndarray[Any, Any]]) -> Any:
    """A call of WeightWatcher's ``analyze`` on a model of these weights, or None without it."""
    try:
        import torch
        import weightwatcher
    except ImportError:
        return None
    model = torch.nn.ModuleDict()
    for number, matrix in enumerate(weights.values()):
        layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight.data = torch.from_numpy(matrix.copy())
        model[str(number)] = layer
    return lambda: weightwatcher.WeightWatcher(model=model).analyze(plot=False)


def made(folder: Path, layers: int) -> int:
    """A sharded bfloat16 checkpoint of 7B's shapes with power-law spectra; its bytes."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    size = 0
    for layer in range(layers):
        shard: dict[str, Any] = {}
        for name, (rows, columns) in SEVEN_B.items():
            inner = min(rows, columns)
            left = torch.randn(rows, inner, generator=generator) / rows**0.5
            right = torch.randn(inner, columns, generator=generator) / columns**0.5
            scale = torch.arange(1, inner + 1).pow(-0.5)
            full = f"model.layers.{layer}.{name}.weight"
            shard[full] = ((left * scale) @ right).to(torch.bfloat16)
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
        size += sum(value.numel() * 2 for value in shard.values())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def command(source: Path, output: Path, *more: str) -> tuple[float, int]:
    program = [sys.executable, "-c", "import sys, tnlib_cli; sys.exit(tnlib_cli.main())"]
    return timed_command(*program, "survey", str(source), "--output", str(output), "--quiet", *more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    about = harness.machine(["tnlib", "numpy", "scipy", "tensorly", "weightwatcher"])
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seconds, peak = command(options.model, folder / "whole")
        result["whole"] = {"seconds": seconds, "peak_bytes": peak}
        print(f"whole checkpoint: {seconds:.1f} s, peak {peak / 1e9:.2f} GB", flush=True)
        result["compared"] = compare(options.model, options.rounds)
        print(json.dumps(result["compared"], indent=1), flush=True)
        (folder / "7b").mkdir()
        size = made(folder / "7b", options.layers)
        largest = 4 * 4096 * 11008
        result["seven_b"] = {"bytes": size, "largest_float32": largest, "runs": []}
        for workers in (1, 2):
            seconds, peak = command(
                folder / "7b", folder / f"out{workers}", "--workers", str(workers)
            )
            run = {"workers": workers, "seconds": seconds, "peak_bytes": peak}
            run |= {"gb_per_minute": size / 1e9 / seconds * 60, "of_largest": peak / largest}
            result["seven_b"]["runs"].append(run)
            print(json.dumps(run), flush=True)
    harness.report(RESULT, about, [result], markdown(result, about))


def markdown(result: dict[str, Any], about: dict[str, Any]) -> str:
    """The tables."""
    whole, compared, seven = result["whole"], result["compared"], result["seven_b"]
    ours = harness.summary(compared["seconds"]["tnlib"])["median"]
    rows = []
    for name, seconds in compared["seconds"].items():
        middle = harness.summary(seconds)["median"]
        rows.append([name, f"{middle:.1f}", f"{middle / ours:.1f}"])
    runs = [
        [
            str(run["workers"]),
            f"{run['seconds']:.0f}",
            f"{run['gb_per_minute']:.2f}",
            f"{run['peak_bytes'] / 1e9:.2f}",
            f"{run['of_largest']:.1f}",
        ]
        for run in seven["runs"]
    ]
    first = harness.table(["library", "s", "times tnlib"], rows)
    second = harness.table(["workers", "s", "GB a minute", "peak GB", "of the largest"], runs)
    return (
        f"# Surveys\n\nThe whole checkpoint: {whole['seconds']:.0f} s, peak "
        f"{whole['peak_bytes'] / 1e9:.2f} GB, all processes together.\n\n"
        f"Three layers, {compared['matrices']} matrices, {compared['decompositions']} "
        f"decompositions, medians:\n\n{first}\n\n"
        f"A sharded bfloat16 checkpoint of 7B's shapes, {seven['bytes'] / 1e9:.2f} GB; the largest "
        f"matrix has {seven['largest_float32'] / 1e9:.2f} GB in float32:\n\n{second}\n\n"
        f"{about['cpu']}, {about['cores']} cores, load {about['load']} at the start.\n"
    )


if __name__ == "__main__":
    main()
