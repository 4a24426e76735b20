"""Numbers that the scripts of ``benchmarks/`` measured, for pages that show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def measured(name: str) -> Any:
    """The content of ``benchmarks/results/NAME.json``: ``machine`` and ``records``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
