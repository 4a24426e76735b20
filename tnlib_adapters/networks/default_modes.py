"""Folding a width into modes, where a method does not say how."""

from __future__ import annotations

import warnings

from tnlib import factorize


def balanced(width: int, count: int, name: str = "") -> tuple[int, ...]:
    """`count` ascending modes of a width, as equal as possible; a warning where it has none."""
    modes = factorize(width, count)
    if count > 1 and width > 16 and modes[-1] == width:
        warnings.warn(
            f"{name or 'a weight'}: {width} has no factors, so its modes are {modes} and nothing "
            "is gained by a network there",
            stacklevel=2,
        )
    return modes


def tt_modes(width: int, out: int, name: str = "") -> tuple[int, ...]:
    """Modes of a tensor-train layer: one a width up to 16, two up to 256, three above.

    Those of the input ascend, those of the output descend.
    """
    first, second = (
        balanced(d, 1 if d <= 16 else 2 if d <= 256 else 3, name) for d in (width, out)
    )
    return (*first, *second[::-1])
