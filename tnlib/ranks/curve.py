"""Error against number of values for one array, for a few sizes up to a budget.

For every size the ranks at the lowest price that keeps it (:mod:`tnlib.ranks.choose_ranks`) are
compared with equal ranks. What that leaves over is not spent: a curve is to be cheap, and every
point says its own size.
"""

from __future__ import annotations

import numpy as np

from tnlib.ranks.choose_ranks import Task, at_price, equal
from tnlib.ranks.parameter_counts import Ranks
from tnlib.ranks.spectra import Spectra

_BISECTIONS = 14


def curve(spectra: Spectra, budgets: tuple[int, ...], points: int) -> list[Ranks]:
    """Ranks of growing numbers of values, up to the largest budget.

    Parameters
    ----------
    spectra : Spectra
        Of the array.
    budgets : tuple of int
        Numbers of values that points shall come close to from below.
    points : int
        So many sizes more, evenly in the logarithm.

    Returns
    -------
    list of tuple of int
        Distinct; empty where ranks of one have more values than every budget.
    """
    count, task = spectra.count, Task((spectra,), (1.0,))
    least = task.level(1)[0]
    smallest = count.values(least)
    if smallest > max(budgets):
        return []
    sizes = {*np.geomspace(smallest, max(budgets), points).astype(int).tolist(), *budgets}
    found = {least}
    for size in sizes:
        if size >= smallest:
            options = (_priced(task, size), equal(task, size)[0])
            found.add(min(options, key=lambda ranks: (spectra.loss(ranks), count.values(ranks))))
    return sorted(found, key=lambda ranks: (count.values(ranks), ranks))


def _priced(task: Task, size: int) -> Ranks:
    """Ranks at the lowest price at which the values keep a size."""
    count = task.spectra[0].count
    best = task.level(1)[0]
    low, high = -60.0, 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ranks = at_price(task, 2.0**middle, False)[0]
        if count.values(ranks) <= size:
            best, high = ranks, middle
        else:
            low = middle
    return best
