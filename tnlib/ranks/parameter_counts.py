"""How many values a format has at given ranks, and which ranks make sense."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Ranks = tuple[int, ...]


class Count(Protocol):
    """Values of one format as a function of its ranks, which is linear in each of them."""

    @property
    def limits(self) -> Ranks:
        """Largest rank of every bond or mode for which there is something to represent."""

    @property
    def dense(self) -> int:
        """Number of values of the array itself."""

    def values(self, ranks: Sequence[int]) -> int:
        """Number of values at these ranks."""

    def slope(self, ranks: Sequence[int], position: int) -> int:
        """Values that one more of a rank adds."""

    def clipped(self, ranks: Sequence[int]) -> Ranks:
        """The ranks without what the others cannot fill."""

    def around(self, position: int, rank: int) -> Ranks:
        """The smallest ranks of which the one at `position` is `rank`."""


@dataclass(frozen=True)
class ChainCount:
    """A tensor train over `modes`: core k has r_k n_k r_{k+1} values."""

    modes: tuple[int, ...]

    @property
    def dense(self) -> int:
        """Number of values of the array itself."""
        return math.prod(self.modes)

    @property
    def limits(self) -> Ranks:
        """The smaller side of every unfolding."""
        total = math.prod(self.modes)
        lefts = [math.prod(self.modes[:k]) for k in range(1, len(self.modes))]
        return tuple(min(left, total // left) for left in lefts)

    def values(self, ranks: Sequence[int]) -> int:
        """Number of values at these ranks."""
        bonds = (1, *ranks, 1)
        return sum(bonds[k] * n * bonds[k + 1] for k, n in enumerate(self.modes))

    def slope(self, ranks: Sequence[int], position: int) -> int:
        """Values that one more of a bond adds to the cores on its two sides."""
        bonds = (1, *ranks, 1)
        left = self.modes[position] * bonds[position]
        return left + self.modes[position + 1] * bonds[position + 2]

    def clipped(self, ranks: Sequence[int]) -> Ranks:
        """No bond above what a core's other bond and mode can fill."""
        bonds = [1, *ranks, 1]
        for k in range(1, len(bonds) - 1):
            bonds[k] = min(bonds[k], bonds[k - 1] * self.modes[k - 1])
        for k in range(len(bonds) - 2, 0, -1):
            bonds[k] = min(bonds[k], bonds[k + 1] * self.modes[k])
        return tuple(bonds[1:-1])

    def around(self, position: int, rank: int) -> Ranks:
        """The smallest ranks of which the one at `position` is `rank`."""
        bonds = [1] * (len(self.modes) + 1)
        bonds[position + 1] = rank
        for k in range(position, 0, -1):
            bonds[k] = -(-bonds[k + 1] // self.modes[k])
        for k in range(position + 2, len(self.modes)):
            bonds[k] = -(-bonds[k - 1] // self.modes[k - 1])
        return tuple(bonds[1:-1])


@dataclass(frozen=True)
class TuckerCount:
    """A Tucker decomposition of an array of shape `modes`: the core and n_k r_k a factor."""

    modes: tuple[int, ...]

    @property
    def dense(self) -> int:
        """Number of values of the array itself."""
        return math.prod(self.modes)

    @property
    def limits(self) -> Ranks:
        """The smaller side of every unfolding."""
        total = math.prod(self.modes)
        return tuple(min(n, total // n) for n in self.modes)

    def values(self, ranks: Sequence[int]) -> int:
        """Number of values at these ranks."""
        return math.prod(ranks) + sum(n * r for n, r in zip(self.modes, ranks, strict=True))

    def slope(self, ranks: Sequence[int], position: int) -> int:
        """Values that one more of a rank adds to the core and to its factor."""
        others = math.prod(r for k, r in enumerate(ranks) if k != position)
        return self.modes[position] + others

    def clipped(self, ranks: Sequence[int]) -> Ranks:
        """No rank above the product of the others."""
        found = list(ranks)
        for k in sorted(range(len(found)), key=found.__getitem__, reverse=True):
            found[k] = min(found[k], math.prod(r for j, r in enumerate(found) if j != k))
        return tuple(found)

    def around(self, position: int, rank: int) -> Ranks:
        """Small ranks of which the one at `position` is `rank`: all others 1.

        A lower bound of what is needed, which is enough to rule out ranks.
        """
        return tuple(rank if k == position else 1 for k in range(len(self.modes)))


def ceilings(count: Count, budget: int) -> Ranks:
    """The largest rank of every bond or mode that can fit into a budget at all."""
    found = []
    for position, limit in enumerate(count.limits):
        ranks = range(1, limit + 1)
        above = bisect.bisect_right(
            ranks, budget, key=lambda rank: count.values(count.around(position, rank))
        )
        found.append(max(above, 1))
    return tuple(found)
