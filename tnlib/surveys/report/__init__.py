"""The report of a survey: one page of HTML that needs no network and nothing beside it.

The numbers and the plotting library (plotly.js) are in the page, compressed; the browser takes them
apart. What is drawn is decided in ``report.js``.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tnlib.surveys.result import Survey

# Digits of the numbers in a report.
_DIGITS = 5


def page(survey: Survey) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    folder = files(__package__)
    parts = {name: (folder / name).read_text("utf-8") for name in ("report.css", "report.js")}
    content = {
        "title": html.escape(_title(survey)),
        "style": parts["report.css"],
        "script": parts["report.js"],
        "data": _packed(json.dumps(_data(survey), separators=(",", ":"))),
        "library": _packed(get_plotlyjs()),
    }
    text = (folder / "report.html").read_text("utf-8")
    for name, value in content.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def _title(survey: Survey) -> str:
    what = "What fine-tuning changed" if survey.is_update else "What is in the weights"
    return f"{what}: {survey.source}"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")


def _data(survey: Survey) -> dict[str, Any]:
    """What the page shows, rounded."""
    found: dict[str, Any] = {
        "source": survey.source,
        "update": survey.is_update,
        "budgets": survey.options["budgets"],
        "eps": survey.options["eps"],
        "options": {k: v for k, v in survey.options.items() if v is not None},
        "notes": list(survey.notes),
        "matrices": survey.of("matrix"),
        "stacks": survey.of("stack"),
        "methods": survey.of("method"),
        "failures": survey.of("failure"),
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
