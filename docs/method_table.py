"""The directive ``method-table``: what the configurations of all methods say of themselves.

A method that is exported by ``tnlib_adapters.methods`` has its row here by itself.
"""

from __future__ import annotations

import re
import sys

import torch
import transformers
from sphinx.util.docutils import SphinxDirective

import tnlib_adapters
from tnlib_adapters.methods import METHODS
from tnlib_adapters.networks.facts import facts

HEADER = ("method", "what it is", "trained parameters", "merges", "exact LoRA", "from a LoRA")


def rows() -> list[tuple[str, ...]]:
    """One row per method at its defaults, of which the parameters are counted on a model."""
    with torch.device("meta"):
        model = transformers.RobertaModel(transformers.RobertaConfig())
    found = []
    for kind in METHODS.values():
        config = kind()
        known = facts([config.network(tnlib_adapters.Site("", 768, 768))])
        doc = sys.modules[kind.__module__].__doc__ or ""
        title, paper = re.match(r"(.*?) \(arXiv ([\d.]+)\)", doc, re.DOTALL).groups()
        name, idea = title.split(": ", 1)
        form = f" ({config.additive_form})" if config.additive_form else ""
        parameters = tnlib_adapters.count(model, kind(target_modules=["query", "value"])).adapter
        found.append(
            (
                f":class:`{name} <tnlib_adapters.{kind.__name__}>`",
                f"{idea} (`paper <https://arxiv.org/abs/{paper}>`__)",
                f"{parameters:,}",
                f"yes{form}" if known["merges"] else "no",
                "yes" if known["low_rank"] else "truncated",
                "yes" if kind.fit_updates else "no",
            )
        )
    return found


class MethodTable(SphinxDirective):
    """A table of all methods."""

    def run(self):
        """The table, parsed as reStructuredText."""
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in [HEADER, *rows()]:
            marks = ["   * -", *["     -"] * (len(row) - 1)]
            lines += [f"{mark} {cell}" for mark, cell in zip(marks, row, strict=True)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Make the directive known to Sphinx."""
    app.add_directive("method-table", MethodTable)
    return {"parallel_read_safe": True}
