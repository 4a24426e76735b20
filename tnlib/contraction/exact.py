"""The best tree over a few parts, by dynamic programming over all subsets of them.

Every cost that is compared is a sum over the products of the tree, or a maximum that is formed
from two subtrees, so the best way to contract a set is made of the best ways to contract two
halves. Outer products are considered too. Where memory matters, the ways that no other beats in
score, saved values and peak at once are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from tnlib.contraction.costed_trees import Way, Ways

# Trade-offs kept for each subset, and ways kept where the score is a model of time.
_FRONT, _ALTERNATIVES = 32, 3


def best(ways: Ways, parts: Sequence[Sequence[Way]]) -> list[Way]:
    """The best ways to contract `parts`, each of which can be had in one or more ways.

    The best comes first; more than one where memory is traded for operations. Empty where a memory
    limit forbids all.
    """
    trades = ways.objective.trades
    alternatives = _ALTERNATIVES if ways.objective.minimize == "time" else 1
    everything = (1 << len(parts)) - 1
    table: list[list[Way]] = [[] for _ in range(everything + 1)]
    for k, part in enumerate(parts):
        table[1 << k] = list(part)
    for subset in range(1, everything + 1):
        low = subset & -subset
        rest = subset ^ low
        found: list[Way] = []
        half = rest
        while half:
            half = (half - 1) & rest
            others = table[rest ^ half]
            for a in table[low | half]:
                for b in others:
                    made = ways.product(a, b)
                    if trades:
                        if ways.allowed(made):
                            found.append(made)
                    elif len(found) < alternatives or made[:3] < found[-1][:3]:
                        found = sorted([*found, made], key=_costs)[:alternatives]
        if rest:
            table[subset] = _front(found) if trades else found
    return sorted(table[everything], key=ways.key)


def _costs(way: Way) -> tuple[float, int, int]:
    return way[:3]


def _front(found: list[Way]) -> list[Way]:
    """The ways that no other beats in score, saved values and peak at once."""
    front: list[Way] = []
    for way in sorted(found, key=_costs):
        if not any(kept.saved <= way.saved and kept.peak <= way.peak for kept in front):
            front.append(way)
    if len(front) > _FRONT:
        spread = {round(k * (len(front) - 1) / (_FRONT - 1)) for k in range(_FRONT)}
        lowest = min(range(len(front)), key=lambda k: front[k].peak)
        front = [front[k] for k in sorted({*spread, lowest})]
    return front
