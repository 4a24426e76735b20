"""Whether a progress bar is shown."""

from __future__ import annotations

# Weights from which work on all of them takes long enough.
LARGE = 50_000_000


def is_shown(progressbar: bool | None, weights: int) -> bool:
    """What a user says, else whether there are many weights to go through."""
    return weights >= LARGE if progressbar is None else progressbar
