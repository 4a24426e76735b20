"""Bars of step time and peak memory by method and number of tokens."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from step_models import FROZEN, METHODS

# Okabe and Ito's palette, dark for few tokens.
COLORS = ["#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"]


def picture(records: list[dict[str, Any]], hardware: str, path: Path) -> None:
    """Draw the records of one rank, 8 where it was measured, to a PNG."""
    from matplotlib.figure import Figure

    ranks = sorted({r["rank"] for r in records if r["rank"]})
    rank = 8 if 8 in ranks else ranks[0]
    shown = [r for r in records if r["rank"] in (rank, None)]
    shapes = list(dict.fromkeys(r["shape"] for r in shown))
    columns = ["to_frozen", "peak"] if any(r["peak"] for r in shown) else ["to_frozen"]
    methods = len({r["method"] for r in shown})
    size = (5.6 * len(columns) + 0.6, (0.33 * methods + 1.0) * len(shapes) + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(shapes), len(columns), squeeze=False, sharey="row")
    for row, shape in zip(grid, shapes, strict=True):
        for axes, column in zip(row, columns, strict=True):
            _bars(axes, [r for r in shown if r["shape"] == shape], column)
        row[0].invert_yaxis()
        row[0].set_title(f"{shape}: step time, frozen model = 1", loc="left", fontsize=10)
        if len(row) > 1:
            row[1].set_title(f"{shape}: peak memory of a step, MB", loc="left", fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.suptitle(f"Forward and backward, rank {rank}", x=0.01, ha="left", fontsize=12)
    figure.supxlabel(hardware, fontsize=8, color="#444444")
    save(figure, path)


def _bars(axes: Any, records: list[dict[str, Any]], column: str) -> None:
    present = {r["method"] for r in records}
    methods = [name for name in (FROZEN, *METHODS) if name in present]
    if column == "to_frozen":
        axes.axvline(1.0, color="gray", linewidth=1, zorder=0)
    tokens = sorted({r["tokens"] for r in records})
    height = 0.8 / len(tokens)
    for k, number in enumerate(tokens):
        found: dict[str, list[float]] = {}
        for r in records:
            # The frozen model is measured with every rank.
            if r["tokens"] == number and r[column] is not None:
                found.setdefault(r["method"], []).append(r[column])
        places = [i for i, method in enumerate(methods) if method in found]
        values = [float(np.median(found[methods[i]])) for i in places]
        values = [value / 1e6 for value in values] if column == "peak" else values
        bars = axes.barh(
            [i + (k - (len(tokens) - 1) / 2) * height for i in places],
            values,
            height,
            color=COLORS[k % len(COLORS)],
            label=f"{number:,} tokens",
        )
        style = "%.2f" if column == "to_frozen" else "%.3g"
        axes.bar_label(bars, fmt=style, fontsize=6, padding=2)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.set_xscale("log" if column == "peak" else "linear")
    if column == "peak":
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.08, y=0.01)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write the picture whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
