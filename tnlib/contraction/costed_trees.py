"""Ways to contract some operands of a network, with what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tnlib.contraction.network import Network
from tnlib.contraction.objective import Objective
from tnlib.contraction.tree import Tree


class Way(NamedTuple):
    """A tree over some operands with its costs; never changed, shared by the trees above it.

    Attributes
    ----------
    score : float
        Operations, or seconds.
    saved : int
        Values kept for the backward pass; for constants alone, unless memory is minimised,
        operations of folding them.
    peak : int
        Largest number of values that exist at one time, the result included.
    held : int
        Values that the result occupies; 0 where it is an operand, or folded.
    mask : int
        The indices of the result.
    below : int
        The operands, as bits.
    branches : tuple of Way
        The two factors of a product, in the order of computation; none for an operand.
    summed : bool
        Whether indices of an operand are summed.
    """

    score: float
    saved: int
    peak: int
    held: int
    mask: int
    below: int
    branches: tuple[Way, ...] = ()
    summed: bool = False

    @property
    def tree(self) -> Tree:
        """The order alone."""
        if self.branches:
            return (self.branches[0].tree, self.branches[1].tree)
        number = self.below.bit_length() - 1
        return ("sum", number) if self.summed else number


@dataclass(frozen=True)
class Ways:
    """Makes ways to contract one network under one objective."""

    network: Network
    objective: Objective

    def key(self, way: Way) -> tuple[float, ...]:
        """What is compared."""
        return self.objective.key(way.score, way.saved, way.peak)

    def allowed(self, way: Way) -> bool:
        """Whether the peak is within the limit."""
        return self.objective.limit is None or way.peak <= self.objective.limit

    def needed(self, below: int) -> int:
        """The indices that the result, or an operand that is not below, has."""
        known = self.network.needed
        if below not in known:
            found = self.network.open
            for k, mask in enumerate(self.network.masks):
                if not below >> k & 1:
                    found |= mask
            known[below] = found
        return known[below]

    def operand(self, number: int) -> list[Way]:
        """An operand as it is, and with its lone indices summed if it has any."""
        mask, below = self.network.masks[number], 1 << number
        ways = [Way(0, 0, 0, 0, mask, below)]
        repeated = len(self.network.terms[number]) > mask.bit_count()
        if repeated or mask & ~self.needed(below):
            ways.append(self.summed(number))
        return ways

    def summed(self, number: int) -> Way:
        """An operand whose indices that nothing else needs are summed, and diagonals taken."""
        mask, below = self.network.masks[number], 1 << number
        result = mask & self.needed(below)
        score = self.objective.single(self.network, mask, result)
        if below & self.objective.constants:
            score, once = self._folded(score)
            return Way(score, once, 0, 0, result, below, summed=True)
        volume = self.network.volume(result)
        return Way(score, 0, volume, volume, result, below, summed=True)

    def product(self, a: Way, b: Way) -> Way:
        """The product of two ways; the one whose computing needs more memory goes first."""
        below = a.below | b.below
        result = (a.mask | b.mask) & self.needed(below)
        wanted, fixed = self.objective.requires_grad, self.objective.constants
        grads = (bool(a.below & wanted), bool(b.below & wanted))
        own = self.objective.product(self.network, a.mask, b.mask, result, grads)
        if not below & ~fixed:
            score, once = self._folded(own)
            return Way(
                a.score + b.score + score, a.saved + b.saved + once, 0, 0, result, below, (a, b)
            )
        saved = a.saved + b.saved + (a.held if grads[1] else 0) + (b.held if grads[0] else 0)
        if a.held + b.peak > b.held + a.peak:
            a, b = b, a
        volume = self.network.volume(result)
        peak = max(a.peak, a.held + b.peak, a.held + b.held + volume)
        return Way(a.score + b.score + own, saved, peak, volume, result, below, (a, b))

    def _folded(self, own: float) -> tuple[float, int]:
        """Score and second criterion of a step that is done once: only ties count it."""
        return (own, 0) if self.objective.minimize == "memory" else (0, int(own))

    def of(self, tree: Tree) -> Way:
        """The way of a given tree."""
        if isinstance(tree, int):
            return self.operand(tree)[0]
        if tree[0] == "sum":
            return self.summed(tree[1])
        return self.product(self.of(tree[0]), self.of(tree[1]))
