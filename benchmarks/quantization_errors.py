"""What 4 bits take from real weights: whole, and without their initial operators."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import harness
import torch
from quantization_models import model_name
from step_picture import save
from text_tasks import causal_model
from torch import nn
from tqdm import tqdm

from tnlib_adapters import DoTAConfig, Site
from tnlib_adapters.fourbit.layer import relative_distance
from tnlib_adapters.fourbit.packed import Format
from tnlib_adapters.layers.residual_base import ResidualLinear
from tnlib_adapters.networks.pretrained import cores_of_weight
from tnlib_adapters.quantization import QuantizedLinear

# Okabe and Ito's palette and a marker, one a kind of layer.
COLORS = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#000000"]
MARKERS = "os^vDP*"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a layer; errors relative in the Frobenius norm."""
    model = causal_model(options.model)
    output = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not output
    }
    return [one(name, layer, options.ranks) for name, layer in tqdm(layers.items(), "layers")]


@torch.no_grad()
def one(name: str, linear: nn.Linear, ranks: list[int]) -> dict[str, Any]:
    """The errors of one layer, and by rank what share of its energy the operator takes."""
    weight = linear.weight
    record: dict[str, Any] = {
        "layer": name,
        "kind": name.rpartition(".")[2],
        "shape": f"{linear.out_features} x {linear.in_features}",
        "whole": QuantizedLinear.from_linear(linear).deviation,
    }
    for rank in ranks:
        site = Site(name, linear.out_features, linear.in_features)
        network = DoTAConfig(r=rank).network(site).unanchored
        cores = cores_of_weight(network, weight)
        residual = ResidualLinear.without(linear, weight, network, cores, Format())
        left = relative_distance(network.delta(cores), weight)
        record |= {f"residual {rank}": residual.deviation, f"energy {rank}": 1 - left**2}
        record[f"size {rank}"] = network.n_params / weight.numel()
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}


def kinds(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the layers of every kind."""
    names = dict.fromkeys(record["kind"] for record in records)
    numbers = [key for key, value in records[0].items() if isinstance(value, float)]
    return {
        name: {
            key: statistics.median(r[key] for r in records if r["kind"] == name) for key in numbers
        }
        for name in names
    }


def table(records: list[dict[str, Any]], ranks: list[int]) -> str:
    rows = []
    for name, found in kinds(records).items():
        mine = [r for r in records if r["kind"] == name]
        row = [name, str(len(mine)), mine[0]["shape"], f"{found['whole']:.2%}"]
        for rank in ranks:
            energy, size = (f"{found[f'{part} {rank}']:.1%}" for part in ("energy", "size"))
            row.append(f"{found[f'residual {rank}']:.2%} ({energy} in {size})")
        rows.append(row)
    header = ["layers", "number", "shape", "Q(W_0)", *(f"rank {rank}" for rank in ranks)]
    return harness.table(header, rows)


def caption(records: list[dict[str, Any]], options: argparse.Namespace) -> str:
    return (
        f"{model_name(options)}, {len(records)} weights in float32. NF4, blocks of "
        "64, scales in 8 bits. Relative error in the Frobenius norm against W_0, median over the "
        "layers of a kind: of the quantised weight, Q(W_0), and of Q(W_0 - MPO(theta_0)) + "
        "MPO(theta_0), where MPO(theta_0) is W_0 decomposed with three modes per side and bonds of "
        "at most that rank. In brackets: the share of |W_0|^2 that the operator takes, and its "
        "values (in float32, beside the 4 bits) as a share of the weight's. Single layers are in "
        "the JSON file."
    )


def picture(records: list[dict[str, Any]], ranks: list[int], path: Path) -> None:
    """Error and energy by rank, a line a kind of layer, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.4), dpi=150, layout="constrained")
    errors, energies = figure.subplots(1, 2)
    places = range(len(ranks) + 1)
    styles = zip(kinds(records).items(), COLORS, MARKERS, strict=False)
    for (name, found), color, marker in styles:
        style = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.3}
        values = [found["whole"], *(found[f"residual {rank}"] for rank in ranks)]
        errors.plot(places, [100 * value for value in values], label=name, **style)
        sizes, taken = ([found[f"{p} {rank}"] for rank in ranks] for p in ("size", "energy"))
        energies.plot([100 * x for x in sizes], [100 * y for y in taken], **style)
    errors.set(title="error of the weight in 4 bits", ylabel="relative Frobenius error, %")
    even = [k / 100 for k in range(20, 10001, 20)]
    style = {"color": "gray", "linestyle": "--", "linewidth": 1, "zorder": 0}
    energies.plot(even, even, label="equal shares", **style)
    energies.legend(loc="upper left", frameon=False)
    errors.set_xticks(places, ["none", *map(str, ranks)])
    errors.set(xlabel="rank of the operator that is not quantised", ylim=(0, None))
    energies.set(title="what the operator takes", ylabel="share of |W_0|², %")
    energies.set(xlabel="values of the operator, % of the weight's", xscale="log")
    energies.xaxis.set_major_formatter("{x:g}")
    for axes in (errors, energies):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=7)
    save(figure, path)
