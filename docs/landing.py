"""Draw the picture of the landing page: ``python docs/landing.py``.

Its parts are an operator, error against values of two weights of MiniLM and of random numbers,
and what `benchmarks/fine_tuning.py` measured on a novel; each for light and for dark pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from safetensors.numpy import load_file

import tnlib

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "examples"))

from assets import fetch  # noqa: E402
from measured import measured  # noqa: E402

INK = {"light": "#1f2933", "dark": "#d5dde5"}
COLORS = ("#0a7d91", "#e07a1f", "#8d5cc2", "#8a949e")


def draw_operator(axes: Axes, ink: str) -> None:
    """A matrix of two legs, and the operator of three cores that takes its place."""
    axes.set(xlim=(-0.5, 5.6), ylim=(-1.7, 1.7), aspect="equal")
    axes.axis("off")
    body: dict[str, Any] = {"marker": "o", "markersize": 23, "zorder": 3, "markeredgewidth": 0}
    line: dict[str, Any] = {"color": ink, "linewidth": 1.6, "zorder": 1}
    axes.plot([0, 0], [-1, 1], **line)
    axes.plot(0, 0, color=COLORS[3], **body)
    axes.text(0, 0, "W", ha="center", va="center", color="white", weight="bold", zorder=4)
    axes.text(0.16, 1.02, "rows", color=ink, va="center")
    axes.text(0.16, -1.02, "columns", color=ink, va="center")
    axes.text(1.05, 0, "≈", ha="center", va="center", color=ink, size=20)
    axes.plot([2, 5], [0, 0], **line)
    for k, x in enumerate((2.0, 3.5, 5.0), start=1):
        axes.plot([x, x], [-1, 1], **line)
        axes.plot(x, 0, color=COLORS[0], **body)
        axes.text(x, 0, f"$\\theta_{k}$", ha="center", va="center", color="white", zorder=4)
        axes.text(x + 0.12, 1.02, f"$i_{k}$", color=ink, va="center")
        axes.text(x + 0.12, -1.02, f"$j_{k}$", color=ink, va="center")
    for x in (2.75, 4.25):
        axes.text(x, 0.12, "rank", ha="center", color=ink, size=8)


def plot_profiles(axes: Axes, weights: dict[str, np.ndarray]) -> None:
    """Error against the share of values."""
    places = {
        "position embedding": (3, 0.1),
        "query, layer 1": (28, 0.5),
        "random numbers": (52, 0.75),
    }
    for (name, weight), color in zip(weights.items(), COLORS[1:], strict=True):
        profile = tnlib.rank_profile(weight)
        share = [100 * n / weight.size for n in profile.n_params]
        axes.plot(share, profile.estimate, color=color, linewidth=2)
        axes.text(*places[name], name, color=color, va="center")
    axes.set(xlabel="values kept, %", ylabel="relative error", xlim=(0, 100), ylim=(0, 1.02))


def plot_methods(axes: Axes, ink: str) -> None:
    """Share of LoRA's gain against the size of the file."""
    records = [r for r in measured("fine_tuning")["records"] if r["task"] == "language"]
    # Side of the text that is at the point, and offsets in points.
    places = {"LoRA (peft)": ("left", 8, 5), "DoTA": ("center", 4, -14)}
    places |= {"LoRETTA adp": ("center", -12, 14), "DoTA, random start": ("right", 8, -20)}
    places |= {"LoRETTA rep": ("right", 2, 13), "LoRA, rank 1 (peft)": ("right", -8, 0)}
    for record in records:
        method = record["method"]
        size, gain = record["bytes"] / 1000, float(np.median(record["gain"]))
        color = COLORS[3] if "(peft)" in method else COLORS[0]
        axes.plot(size, gain, "o", markersize=8, color=color)
        side, *offset = places.get(method, ("left", 8, 0))
        axes.annotate(
            method.replace(", random start", " (random)").replace(" (peft)", ""),
            (size, gain),
            offset,
            textcoords="offset points",
            ha=side,
            va="center",
            color=ink,
            size=9,
        )
    axes.set(xscale="log", xlim=(14, 5000), ylim=(0.5, 1.25))
    axes.set_xticks([20, 100, 500, 2000], ["20 kB", "100 kB", "500 kB", "2 MB"])
    axes.minorticks_off()
    axes.set(xlabel="adapter file", ylabel="gain / LoRA's gain")


def main() -> None:
    """Write six files, ``_static/landing-{operator,weights,methods}-{light,dark}.svg``."""
    tensors = load_file(fetch("minilm") / "model.safetensors")
    noise = np.random.default_rng(0).standard_normal((384, 384))
    weights = {
        "position embedding": tensors["embeddings.position_embeddings.weight"],
        "query, layer 1": tensors["encoder.layer.0.attention.self.query.weight"],
        "random numbers": noise.astype(np.float32),
    }
    for mode, ink in INK.items():
        style = dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
        )
        style |= {"svg.hashsalt": "tnlib", "axes.spines.top": False, "axes.spines.right": False}
        panels: dict[str, Callable[[Axes], None]] = {
            "operator": partial(draw_operator, ink=ink),
            "weights": partial(plot_profiles, weights=weights),
            "methods": partial(plot_methods, ink=ink),
        }
        for name, draw in panels.items():
            with plt.rc_context(style):
                figure, axes = plt.subplots(figsize=(3.7, 2.55), layout="constrained")
                draw(axes)
                path = DOCS / "_static" / f"landing-{name}-{mode}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})
                plt.close(figure)
            print(path)


if __name__ == "__main__":
    main()
