"""Slices: fixing an index to one value after the other makes every array that has it smaller.

The contraction is repeated for every value, and the results are added, or put side by side where
the index is one of the result. It costs operations wherever a step does not have the index, and
is the way to keep a limit that no order of contraction keeps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tnlib.arrays.backend import Array
from tnlib.contraction.cost import Cost
from tnlib.contraction.costed_trees import Way, Ways
from tnlib.contraction.network import Network
from tnlib.contraction.objective import Objective
from tnlib.contraction.search import candidates


def inner(network: Network, sliced: Sequence[str]) -> Network:
    """The network of one slice: the sliced indices have size 1."""
    shapes = [
        tuple(1 if index in sliced else size for index, size in zip(term, shape, strict=True))
        for term, shape in zip(network.terms, network.shapes, strict=True)
    ]
    return Network(network.terms, network.output, tuple(shapes))


def count(network: Network, sliced: Sequence[str]) -> int:
    """Number of slices."""
    return math.prod(network.sizes[index] for index in sliced)


def repeated(cost: Cost, network: Network, sliced: Sequence[str], itemsize: int) -> Cost:
    """The cost of all slices from that of one; partial results exist beside the sum of them."""
    times = count(network, sliced)
    if times == 1:
        return cost
    return replace(
        cost,
        flops=cost.flops * times,
        backward_flops=cost.backward_flops * times,
        peak_bytes=cost.peak_bytes + results(network, itemsize),
        saved_bytes=cost.saved_bytes * times,
    )


def results(network: Network, itemsize: int) -> int:
    """Bytes of the sum of slices beside the slice that is added: the result, twice."""
    return 2 * network.volume(network.open) * itemsize


def search(
    network: Network, objective: Objective, max_repeats: int
) -> tuple[tuple[str, ...], list[Way]]:
    """Indices to slice, and ways for one slice, that keep the limit; no ways if none do.

    Of the order with fewest operations that index is sliced, one after the other, which lowers
    the peak for the fewest operations; then an order is searched for the slice.
    """
    limit = (objective.limit or 0) - 2 * network.volume(network.open)
    free = replace(objective, limit=None)
    tree = candidates(Ways(network, free), max_repeats)[0].tree
    sliced: tuple[str, ...] = ()
    peak = Ways(network, free).of(tree).peak
    while peak > limit:
        options = []
        for index, size in network.sizes.items():
            if size > 1 and index not in sliced:
                way = Ways(inner(network, (*sliced, index)), free).of(tree)
                if way.peak < peak:
                    options.append((way.score * size, way.peak, index))
        if not options:
            return (), []
        _, peak, index = min(options)
        sliced = (*sliced, index)
    one = Ways(inner(network, sliced), replace(objective, limit=limit))
    return sliced, sorted([*candidates(one, max_repeats), one.of(tree)], key=one.key)


def run(
    terms: Sequence[str],
    output: str,
    sliced: Sequence[str],
    one: Callable[[Sequence[Array]], Array],
    arrays: Sequence[Array],
) -> Array:
    """Contract slice by slice with `one`, which takes arrays with axes of size 1."""
    if not sliced:
        return one(arrays)
    index, *others = sliced
    sizes = [
        array.shape[term.index(index)]
        for term, array in zip(terms, arrays, strict=True)
        if index in term
    ]
    parts = (
        run(terms, output, others, one, _fixed(terms, arrays, index, value))
        for value in range(sizes[0])
    )
    if index in output:
        made = list(parts)
        joined = np.concatenate if isinstance(made[0], np.ndarray) else sys.modules["torch"].cat
        return joined(made, output.index(index))
    return _sum(parts)


def _sum(parts: Iterator[Array]) -> Array:
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def _fixed(terms: Sequence[str], arrays: Sequence[Array], index: str, value: int) -> list[Array]:
    """The arrays with one index fixed; its axes keep size 1."""
    fixed = []
    for term, array in zip(terms, arrays, strict=True):
        key = tuple(slice(value, value + 1) if symbol == index else slice(None) for symbol in term)
        fixed.append(array[key] if index in term else array)
    return fixed
