"""Making a tree better piece by piece.

Subtree reconfiguration (Gray and Kourtis, Quantum 5, 410, 2021, section 4.4): the upper part of a
subtree, opened until it has a few branches, is replaced by the best tree over the same branches.
"""

from __future__ import annotations

from dataclasses import replace

from tnlib.contraction.exact import best
from tnlib.contraction.ways import Way, Ways

_PASSES = 6


def repaired(ways: Ways, way: Way, size: int) -> Way:
    """The way after passes over its pieces of `size` branches, until nothing gets better."""
    unlimited = replace(ways, objective=replace(ways.objective, limit=None))
    for _ in range(_PASSES):
        better = _pass(ways, unlimited, way, size)
        if not ways.key(better) < ways.key(way):
            break
        way = better
    return way


def _pass(ways: Ways, unlimited: Ways, way: Way, size: int) -> Way:
    """Repair the piece at the root, then each of its branches."""
    if not way.branches:
        return way
    pieces = _opened(way, size)
    if len(pieces) > 2:
        found = best(unlimited, [[piece] for piece in pieces])
        way = min([way, *found], key=ways.key)
    done = {piece.below: _pass(ways, unlimited, piece, size) for piece in pieces}
    return _rebuilt(ways, way, done)


def _rebuilt(ways: Ways, way: Way, done: dict[int, Way]) -> Way:
    """The tree over the pieces, with the pieces replaced."""
    if way.below in done:
        return done[way.below]
    return ways.product(*(_rebuilt(ways, branch, done) for branch in way.branches))


def _opened(way: Way, size: int) -> list[Way]:
    """The branches that remain when the largest arrays are opened until there are enough."""
    pieces = [way]
    while len(pieces) < size:
        inner = [piece for piece in pieces if piece.branches]
        if not inner:
            break
        largest = max(inner, key=lambda piece: piece.held)
        pieces.remove(largest)
        pieces += largest.branches
    return pieces
