"""Plain-text tables and the picture of the validation losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sentiment import Record

# Okabe and Ito's palette: told apart with any kind of colour vision. The marker and the dashes
# tell the curves apart in print without colour.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
)


@dataclass(frozen=True)
class Result:
    """One line of the results: how a method was set, what training gave, and the test."""

    method: str
    rank: int
    learning_rate: float
    test_accuracy: float
    record: Record


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align the columns, the first to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def join(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])

    head, *body = map(join, lines)
    return "\n".join([head, "  ".join("-" * width for width in widths), *body])


def results_table(results: Sequence[Result]) -> str:
    """One line a method: its size, its quality and its speed."""
    header = ("method", "rank", "rate", "trainable", "file", "val. loss", "test acc.", "s / step")
    rows = [
        (
            result.method,
            str(result.rank),
            f"{result.learning_rate:g}",
            f"{result.record.trainable_parameters:,}",
            f"{result.record.adapter_bytes / 1000:,.0f} kB",
            f"{result.record.validation_losses[-1]:.3f}",
            f"{result.test_accuracy:.1%}",
            f"{result.record.seconds_per_step:.3f}",
        )
        for result in results
    ]
    return format_table(header, rows)


def save_picture(results: Sequence[Result], path: Path) -> None:
    """Draw every method's validation loss against the training step."""
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for result, style in zip(results, STYLES, strict=True):
        record = result.record
        label = f"{result.method}, rank {result.rank} ({record.trainable_parameters:,} weights)"
        steps, losses = record.validation_steps, record.validation_losses
        axes.plot(steps, losses, label=label, linewidth=2, clip_on=False, **style)
    axes.set_title("Validation loss while fine-tuning for sentiment", loc="left")
    axes.set_xlabel("training step")
    axes.set_ylabel("validation loss (cross-entropy, nats)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
