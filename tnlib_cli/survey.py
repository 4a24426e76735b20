"""``tnlib survey``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tnlib import survey

_OPTIONAL = ("shapes", "budget", "eps", "exact_side")


def run(options: argparse.Namespace) -> str:
    """Survey a checkpoint; the table, and where the rest is."""
    given = {name: getattr(options, name) for name in _OPTIONAL}
    found = survey(
        options.source,
        options.base,
        output=options.output,
        select=options.select,
        exclude=options.exclude,
        dtype=options.dtype,
        device=options.device,
        workers=options.workers,
        scheduler=options.scheduler,
        progress=not options.quiet,
        **{name: value for name, value in given.items() if value is not None},
    )
    return f"{found}\n\nwritten to {Path(options.output) / 'report.html'}"
