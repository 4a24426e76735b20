"""Ranks for a budget: the least total squared error at a given number of values.

What is minimised is an estimate of the error from the singular values (:meth:`Spectra.loss`). With
a price lambda on every value, a rank is best where one more singular value is worth less than what
it costs, gain <= lambda * slope; both depend on the other ranks, so this is repeated until it
settles, from above and from below. The price is found by bisection (Shoham and Gersho, IEEE Trans.
ASSP 36, 1988, for the same problem in coding); what it leaves over is spent step by step, and for
one array small exchanges are tried. Ranks that are all equal are a candidate too, so by the
estimate the result is never worse than they are.

An array may also be kept dense, without loss, where that costs no more than its ranks, or where the
price makes it worth while. Ranks without an entry stand for that: a train of a single core.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tnlib.ranks.parameter_counts import Ranks
from tnlib.ranks.spectra import Spectra

_BISECTIONS, _ROUNDS = 50, 30
# Exchanges lower one of at most so many ranks by at most so much.
_EXCHANGED_BONDS, _EXCHANGED = 4, 2


# The ranks of an array that is kept dense.
DENSE: Ranks = ()


@dataclass(frozen=True)
class Task:
    """Arrays whose ranks are chosen together, with the weight of each one's squared error.

    With `may_be_dense` an array can be kept as it is.
    """

    spectra: tuple[Spectra, ...]
    weights: tuple[float, ...]
    may_be_dense: bool = False

    def size(self, array: int, ranks: Ranks) -> int:
        """Number of values of one array."""
        count = self.spectra[array].count
        return count.values(ranks) if ranks else count.dense

    def lost(self, array: int, ranks: Ranks) -> float:
        """Weighted estimate of the squared error of one array."""
        return self.weights[array] * self.spectra[array].loss(ranks) if ranks else 0.0

    def values(self, choice: Sequence[Ranks]) -> int:
        """Total number of values."""
        return sum(self.size(array, ranks) for array, ranks in enumerate(choice))

    def loss(self, choice: Sequence[Ranks]) -> float:
        """Weighted total of the estimated squared errors."""
        return math.fsum(self.lost(array, ranks) for array, ranks in enumerate(choice))

    def cheapest(self, array: int, ranks: Ranks) -> Ranks:
        """`ranks`, or dense where that has no more values."""
        dense = self.may_be_dense and self.spectra[array].count.dense <= self.size(array, ranks)
        return DENSE if dense else ranks

    def level(self, rank: int) -> tuple[Ranks, ...]:
        """One rank for everything, as far as there is something to represent."""
        clipped = (
            s.count.clipped(tuple(min(rank, limit) for limit in s.limits)) for s in self.spectra
        )
        return tuple(self.cheapest(array, ranks) for array, ranks in enumerate(clipped))

    @property
    def full(self) -> tuple[Ranks, ...]:
        """The largest ranks."""
        return self.level(max((max(s.limits, default=1) for s in self.spectra), default=1))


def choose(task: Task, budget: int) -> tuple[Ranks, ...]:
    """Ranks of every array with at most `budget` values in total and little loss.

    Raises
    ------
    ValueError
        If even ranks of one need more values.
    """
    least = task.level(1)
    if task.values(least) > budget:
        raise ValueError(
            f"max_params={budget} is too small: ranks of 1 have {task.values(least)} values"
        )
    if task.values(task.full) <= budget:
        return task.full
    starts = (*_priced(task, budget), equal(task, budget), least)
    found = [_filled(task, choice, budget) for choice in starts]
    if len(task.spectra) == 1 and len(least[0]) <= _EXCHANGED_BONDS:
        found = [_exchanged(task, choice, budget) for choice in found]
    return min(found, key=lambda choice: (task.loss(choice), task.values(choice)))


def equal(task: Task, budget: int) -> tuple[Ranks, ...]:
    """The largest one rank for everything that fits into the budget."""
    low, high = 1, max((max(s.limits, default=1) for s in task.spectra), default=1)
    while low < high:
        middle = (low + high + 1) // 2
        fits = task.values(task.level(middle)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return task.level(low)


def _priced(task: Task, budget: int) -> list[tuple[Ranks, ...]]:
    """The choice at the lowest price that keeps the budget, settled from above and from below."""
    found = []
    for above in (True, False):
        low, high = -200.0, 4.0 + math.log2(max(task.weights, default=1.0) or 1.0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            choice = at_price(task, 2.0**middle, above)
            if task.values(choice) <= budget:
                high = middle
            else:
                low = middle
        choice = at_price(task, 2.0**high, above)
        if task.values(choice) <= budget:
            found.append(choice)
    return found


def at_price(task: Task, price: float, above: bool) -> tuple[Ranks, ...]:
    """Ranks at which one more singular value is worth less than the values it costs."""
    found = []
    for array, (spectra, weight) in enumerate(zip(task.spectra, task.weights, strict=True)):
        ranks = _settled(spectra, price / weight if weight > 0 else math.inf, above)
        if task.may_be_dense and ranks:
            spared = price * (spectra.count.dense - task.size(array, ranks))
            ranks = DENSE if spared <= task.lost(array, ranks) else ranks
        found.append(ranks)
    return tuple(found)


def _settled(spectra: Spectra, price: float, above: bool) -> Ranks:
    """Ranks of one array at a price, from its largest or its smallest ranks."""
    limits = spectra.limits
    ranks = list(limits) if above else [1] * len(limits)
    for _ in range(_ROUNDS):
        before = tuple(ranks)
        for k, energies in enumerate(spectra.energies):
            share = spectra.share(ranks, k)
            worth = price * spectra.count.slope(ranks, k) / share if share > 0 else math.inf
            ranks[k] = max(1, int(np.searchsorted(-energies, -worth, side="left")))
        ranks = list(spectra.count.clipped(ranks))
        if tuple(ranks) == before:
            break
    return tuple(ranks)


def _exchanged(task: Task, choice: tuple[Ranks, ...], budget: int) -> tuple[Ranks, ...]:
    """The choice after giving up a few of one rank for others, as long as that helps."""
    while True:
        better = min(_neighbours(task, choice[0], budget), key=task.loss, default=choice)
        if not task.loss(better) < task.loss(choice):
            return choice
        choice = better


def _neighbours(task: Task, ranks: Ranks, budget: int) -> Iterator[tuple[Ranks, ...]]:
    """Choices that have a few less of one rank, and one more of another before the rest."""
    count = task.spectra[0].count
    for bond, rank in enumerate(ranks):
        for less in range(1, min(_EXCHANGED, rank - 1) + 1):
            lower = count.clipped([r - less * (k == bond) for k, r in enumerate(ranks)])
            for first in range(len(ranks)):
                yield _filled(task, (lower,), budget, first)


def _filled(
    task: Task, choice: Sequence[Ranks], budget: int, first: int | None = None
) -> tuple[Ranks, ...]:
    """The choice after raising ranks one by one, the best return for a value first.

    Where a rank cannot grow alone, two are raised together. With `first`, that rank of the first
    array is raised once before all others.
    """
    ranks = [tuple(r) for r in choice]
    left = budget - task.values(choice)
    queue: list[tuple[float, int, Ranks]] = []

    def offer(array: int) -> None:
        spectra, current = task.spectra[array], ranks[array]
        raises = _raises(spectra, current) if current else []
        if task.may_be_dense and current:
            raises.append(DENSE)
        for raised in raises:
            queue_key = -_return(task, array, current, raised)
            if queue_key < 0:
                heapq.heappush(queue, (queue_key, array, raised))

    if first is not None:
        raised = tuple(r + (k == first) for k, r in enumerate(ranks[0]))
        cost = task.spectra[0].count.values(raised) - task.spectra[0].count.values(ranks[0])
        if raised in _raises(task.spectra[0], ranks[0]) and cost <= left:
            ranks[0], left = raised, left - cost
    for array in range(len(ranks)):
        offer(array)
    while queue:
        _, array, raised = heapq.heappop(queue)
        current = ranks[array]
        if not current or not _is_raise(task.spectra[array], current, raised):
            continue
        cost = task.size(array, raised) - task.size(array, current)
        if cost <= left:
            ranks[array], left = raised, left - cost
            offer(array)
    cheapest = tuple(task.cheapest(array, found) for array, found in enumerate(ranks))
    return cheapest if cheapest == tuple(ranks) else _filled(task, cheapest, budget)


def _is_raise(spectra: Spectra, ranks: Ranks, raised: Ranks) -> bool:
    """Whether an offer still holds; one that was made for other ranks may be out of date."""
    if not raised:
        return True
    changed = [r - c for r, c in zip(raised, ranks, strict=True)]
    grows = min(changed) >= 0 and 1 <= sum(changed) <= 2
    return grows and spectra.count.clipped(raised) == raised


def _raises(spectra: Spectra, ranks: Ranks) -> list[Ranks]:
    """Ranks with one of them, or where that is useless with two of them, larger by one."""
    limits, count = spectra.limits, spectra.count
    free = [k for k, rank in enumerate(ranks) if rank < limits[k]]
    found = []
    for k in free:
        alone = tuple(r + (j == k) for j, r in enumerate(ranks))
        options = [alone]
        if count.clipped(alone) != alone:
            options = [tuple(r + (j in (k, other)) for j, r in enumerate(ranks)) for other in free]
        found += [raised for raised in options if count.clipped(raised) == raised]
    return found


def _return(task: Task, array: int, ranks: Ranks, raised: Ranks) -> float:
    """What the estimated loss falls by for each value that raised ranks add."""
    spectra = task.spectra[array]
    if not raised:
        cost = spectra.count.dense - task.size(array, ranks)
        return task.lost(array, ranks) / cost if cost > 0 else math.inf
    if sum(raised) == sum(ranks) + 1:
        position = next(k for k, r in enumerate(raised) if r > ranks[k])
        gain, cost = spectra.gain(ranks, position), spectra.count.slope(ranks, position)
    else:
        gain = spectra.loss(ranks) - spectra.loss(raised)
        cost = spectra.count.values(raised) - spectra.count.values(ranks)
    return task.weights[array] * gain / cost
