"""Numbers that the scripts of ``benchmarks/`` measured, and tables of them, for pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def measured(name: str) -> Any:
    """The content of ``benchmarks/results/NAME.json``: ``machine`` and ``records``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@dataclass
class Table:
    """Rows under a header, which notebooks show as a table; numbers stand on the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def _repr_markdown_(self) -> str:
        rule = ["---"] + ["--:"] * (len(self.header) - 1)
        lines = (self.header, rule, *self.rows)
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
