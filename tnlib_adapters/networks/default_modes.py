"""Folding a width into modes, where a method does not say how."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from tnlib import factorize
from tnlib_adapters.base_model.sites import Site


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
    """Modes of a tensor-train layer: one per width up to 16, two up to 256, three above.

    Those of the input ascend, those of the output descend.
    """
    first, second = (
        balanced(d, 1 if d <= 16 else 2 if d <= 256 else 3, name) for d in (width, out)
    )
    return (*first, *second[::-1])


def matrix_modes(
    dims: int | Sequence[Sequence[int]], site: Site, *, ascending: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column modes of a weight: as many balanced ones per side, or those that are given.

    Balanced modes ascend; with ``ascending=False`` those of the rows descend.

    Raises
    ------
    ValueError
        If the modes that are given are those of another weight.
    """
    name, widths = site.name or "the weight", (site.out_features, site.in_features)
    if not isinstance(dims, Sequence):
        rows, columns = (balanced(width, dims, name) for width in widths)
        return rows if ascending else rows[::-1], columns
    products = tuple(map(math.prod, dims))
    if products != widths:
        raise ValueError(
            f"dims={dims!r} make a {products[0]} x {products[1]} matrix, but {name} is "
            f"{widths[0]} x {widths[1]}; use an int, or target weights of one shape"
        )
    return tuple(dims[0]), tuple(dims[1])
