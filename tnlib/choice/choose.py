"""Ranks for a budget: the least total squared error at a given number of values.

What is minimised is an estimate of the error from the singular values (:meth:`Spectra.loss`). With
a price lambda on every value, a rank is best where one more singular value is worth less than what
it costs, gain <= lambda * slope; both depend on the other ranks, so this is repeated until it
settles, from above and from below. The price is found by bisection (Shoham and Gersho, IEEE Trans.
ASSP 36, 1988, for the same problem in coding); what it leaves over is spent step by step, and for
one array small exchanges are tried. Ranks that are all equal are a candidate too, so by the
estimate the result is never worse than they are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tnlib.choice.counts import Ranks
from tnlib.choice.spectra import Spectra

_BISECTIONS, _ROUNDS, _EXCHANGED = 50, 30, 2


@dataclass(frozen=True)
class Task:
    """Arrays whose ranks are chosen together, with the weight of each one's squared error."""

    spectra: tuple[Spectra, ...]
    weights: tuple[float, ...]

    def values(self, choice: Sequence[Ranks]) -> int:
        """Total number of values."""
        return sum(s.count.values(ranks) for s, ranks in zip(self.spectra, choice, strict=True))

    def loss(self, choice: Sequence[Ranks]) -> float:
        """Weighted total of the estimated squared errors."""
        triples = zip(self.weights, self.spectra, choice, strict=True)
        return math.fsum(weight * s.loss(ranks) for weight, s, ranks in triples)


def choose(task: Task, budget: int) -> tuple[Ranks, ...]:
    """Ranks of every array with at most `budget` values in total and little loss.

    Raises
    ------
    ValueError
        If even ranks of one need more values.
    """
    least = tuple((1,) * len(s.limits) for s in task.spectra)
    if task.values(least) > budget:
        raise ValueError(
            f"max_params={budget} is too small: ranks of 1 have {task.values(least)} values"
        )
    full = tuple(s.count.clipped(s.limits) for s in task.spectra)
    if task.values(full) <= budget:
        return full
    starts = (*_priced(task, budget), equal(task, budget), least)
    found = [_filled(task, choice, budget) for choice in starts]
    if len(task.spectra) == 1:
        found = [_exchanged(task, choice, budget) for choice in found]
    return min(found, key=lambda choice: (task.loss(choice), task.values(choice)))


def equal(task: Task, budget: int) -> tuple[Ranks, ...]:
    """The largest one rank for everything that fits into the budget."""
    low, high = 1, max((max(s.limits, default=1) for s in task.spectra), default=1)
    while low < high:
        middle = (low + high + 1) // 2
        fits = task.values(_level(task, middle)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return _level(task, low)


def _level(task: Task, rank: int) -> tuple[Ranks, ...]:
    return tuple(
        s.count.clipped(tuple(min(rank, limit) for limit in s.limits)) for s in task.spectra
    )


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
    return tuple(
        _settled(s, price / weight if weight > 0 else math.inf, above)
        for s, weight in zip(task.spectra, task.weights, strict=True)
    )


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

    With `first`, that rank of the first array is raised once before all others.
    """
    ranks = [list(r) for r in choice]
    left = budget - task.values(choice)
    queue: list[tuple[float, int, int]] = []

    def offer(array: int, bond: int) -> None:
        spectra, current = task.spectra[array], ranks[array]
        rank = current[bond]
        if rank < spectra.limits[bond]:
            gain = task.weights[array] * spectra.gain(current, bond)
            heapq.heappush(queue, (-gain / spectra.count.slope(current, bond), array, bond))

    for array, current in enumerate(ranks):
        for bond in range(len(current)):
            offer(array, bond)
    if first is not None:
        key = -math.inf
        queue.append((key, 0, first))
        heapq.heapify(queue)
    while queue:
        key, array, bond = heapq.heappop(queue)
        spectra, current = task.spectra[array], ranks[array]
        if current[bond] == spectra.limits[bond]:
            continue
        cost = spectra.count.slope(current, bond)
        gain = task.weights[array] * spectra.gain(current, bond)
        if key > -math.inf and -gain / cost > key:
            offer(array, bond)
            continue
        raised = [r + (k == bond) for k, r in enumerate(current)]
        if cost <= left and gain > 0 and spectra.count.clipped(raised) == tuple(raised):
            ranks[array] = raised
            left -= cost
            for other in range(len(raised)):
                offer(array, other)
    return tuple(tuple(r) for r in ranks)
