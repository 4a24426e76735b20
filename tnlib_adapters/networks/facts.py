"""What the declarations of an adapter say of it as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tnlib_adapters.networks.declaration_kinds import Declaration
from tnlib_adapters.networks.low_rank import has_rank


def facts(declarations: Iterable[Declaration]) -> dict[str, Any]:
    """Facts that a saved configuration carries, for somebody who has only the file.

    Returns
    -------
    dict
        "scale", the factor of the updates, None where they differ; "merges", whether all are
        updates of weights; "low_rank", whether all have exact factors of a rank up to both widths.
    """
    scales, merges, low_rank = set(), True, True
    for declaration in declarations:
        parts = [network for _, network in declaration.networks]
        scales |= {part.scale for part in parts} if declaration.additive else {declaration.scale}
        merges = merges and declaration.additive
        for part in parts:
            most = min(part.out_features, part.in_features) // (1 + part.anchored)
            low_rank = low_rank and has_rank(part, most)
    scale = scales.pop() if len(scales) == 1 else None
    return {"scale": scale, "merges": merges, "low_rank": merges and low_rank}


def total_parameters(declarations: Mapping[str, Declaration]) -> int:
    """Parameters of all cores of declarations by weight, those of a group counted once."""
    sizes: dict[tuple[str, str], int] = {}
    for name, declaration in declarations.items():
        shapes = declaration.shapes
        for core in declaration.cores:
            sizes[core.key, core.group or name] = math.prod(shapes[core.key])
    return sum(sizes.values())
