"""The report of a survey: one page of HTML that needs no network and nothing beside it.

The numbers and the plotting library (plotly.js) are in the page, compressed; the browser takes them
apart. What is drawn is decided in ``report.js``.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

# Digits of the numbers in a report.
_DIGITS = 5
_TITLES = {False: "What is in the weights", True: "What fine-tuning changed"}
_KINDS = {"matrix": "matrices", "stack": "stacks", "method": "methods", "failure": "failures"}


def page(
    source: str,
    is_update: bool,
    options: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> str:
    """The page of a survey as text."""
    from plotly.offline import get_plotlyjs

    folder = files(__package__)
    parts = {name: (folder / name).read_text("utf-8") for name in ("report.css", "report.js")}
    data = {
        "source": source,
        "update": is_update,
        "budgets": options["budgets"],
        "eps": options["eps"],
        "options": {key: value for key, value in options.items() if value is not None},
        "notes": list(notes),
    }
    for kind, plural in _KINDS.items():
        data[plural] = [record for record in records if record["record"] == kind]
    content = {
        "title": html.escape(f"{_TITLES[is_update]}: {source}"),
        "style": parts["report.css"],
        "script": parts["report.js"],
        "data": _packed(json.dumps(_rounded(data), separators=(",", ":"))),
        "library": _packed(get_plotlyjs()),
    }
    text = (folder / "report.html").read_text("utf-8")
    for name, value in content.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
