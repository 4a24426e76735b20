"""Making a tree better piece by piece.

Subtree reconfiguration (Gray and Kourtis, Quantum 5, 410, 2021, section 4.4): the upper part of a
subtree, opened until it has a few branches, is replaced by the best tree over the same branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tnlib.contraction.costed_trees import Way, Ways
from tnlib.contraction.exact import best

_PASSES = 8

First = Callable[[Way], float]
# What is opened first: the largest array, and in the next pass the dearest subtree.
_FIRST: tuple[First, ...] = (lambda piece: piece.held, lambda piece: piece.score)


def repaired(ways: Ways, way: Way, size: int) -> Way:
    """The way after passes over its pieces of `size` branches, until nothing gets better."""
    unlimited = replace(ways, objective=replace(ways.objective, limit=None))
    idle = 0
    for number in range(_PASSES):
        better = _pass(ways, unlimited, way, size, _FIRST[number % len(_FIRST)])
        idle = 0 if ways.key(better) < ways.key(way) else idle + 1
        if idle == len(_FIRST):
            break
        way = min(way, better, key=ways.key)
    return way


def _pass(ways: Ways, unlimited: Ways, way: Way, size: int, first: First) -> Way:
    """Repair the piece at the root, then each of its branches."""
    if not way.branches:
        return way
    pieces = _opened(way, size, first)
    if len(pieces) > 2:
        found = best(unlimited, [[piece] for piece in pieces])
        way = min([way, *found], key=ways.key)
    done = {piece.below: _pass(ways, unlimited, piece, size, first) for piece in pieces}
    return _rebuilt(ways, way, done)


def _rebuilt(ways: Ways, way: Way, done: dict[int, Way]) -> Way:
    """The tree over the pieces, with the pieces replaced."""
    if way.below in done:
        return done[way.below]
    return ways.product(*(_rebuilt(ways, branch, done) for branch in way.branches))


def _opened(way: Way, size: int, first: First) -> list[Way]:
    """The branches that remain when the first by some measure is opened until there are enough."""
    pieces = [way]
    while len(pieces) < size:
        inner = [piece for piece in pieces if piece.branches]
        if not inner:
            break
        next_ = max(inner, key=first)
        pieces.remove(next_)
        pieces += next_.branches
    return pieces
