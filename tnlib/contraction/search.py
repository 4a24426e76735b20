"""Searching for a good order: exactly where that is quick, and by candidates and repair beyond.

Beyond the exact size the candidates are opt_einsum's, noisy greedy ones, recursive bisections,
cotengra's where it is installed, and for every operand the order that contracts all others first:
rebuilding a matrix before it is applied. All are repaired in small pieces, the best of them in
larger ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import opt_einsum

from tnlib.contraction.bisection import bisected
from tnlib.contraction.costed_trees import Way, Ways
from tnlib.contraction.exact import best
from tnlib.contraction.network import Network
from tnlib.contraction.repair import repaired
from tnlib.contraction.tree import Tree, tree_of

# Operands up to which every order is tried, and up to which opt_einsum's dynamic programming is
# quick for any network.
EXACT, _DP = 9, 12
# Operands up to which each is tried as the last one.
_ALL_BUT = 32
# Branches of the pieces that are repaired: small ones in so many ways, large ones in so many.
_SMALL, _LARGE = 6, 8
_MANY, _FEW = 12, 3
# cotengra's trials are this many times as dear as the others.
_DEAR = 4


def candidates(ways: Ways, max_repeats: int) -> list[Way]:
    """Ways worth considering, the best first; none where the memory limit forbids all."""
    network = ways.network
    count = len(network.terms)
    if count == 1:
        found = [ways.summed(0)]
    elif count <= EXACT:
        found = best(ways, [ways.operand(k) for k in range(count)])
    else:
        trees = list(_trees(network, max_repeats))
        found = _repaired(ways, trees)
        if not any(map(ways.allowed, found)):
            # Nothing keeps the limit: look for the smallest peak instead.
            least = replace(ways.objective, minimize="memory", requires_grad=0, roofline=None)
            small = _repaired(replace(ways, objective=least), trees)
            found = [ways.of(way.tree) for way in small[:_FEW]]
    return sorted(filter(ways.allowed, found), key=ways.key)


def _repaired(ways: Ways, trees: Sequence[Tree]) -> list[Way]:
    """The ways of the trees, the best of them repaired in small pieces and then in large ones."""
    tried = sorted(map(ways.of, trees), key=ways.key)
    rough = sorted((repaired(ways, way, _SMALL) for way in tried[:_MANY]), key=ways.key)
    fine = [repaired(ways, way, _LARGE) for way in rough[:_FEW]]
    return sorted([*fine, *rough, *tried], key=ways.key)


def _trees(network: Network, max_repeats: int) -> Iterator[Tree]:
    count = len(network.terms)
    # Sets of numbers, unlike those of strings, have the same order in every process.
    number = {index: k for k, index in enumerate(network.sizes)}
    inputs = [frozenset(number[index] for index in term) for term in network.terms]
    output = frozenset(number[index] for index in network.output)
    problem = (inputs, output, {number[i]: max(n, 1) for i, n in network.sizes.items()})
    finders: list[Callable[..., Any]] = [opt_einsum.paths.auto]
    if count <= _DP:
        finders.append(opt_einsum.DynamicProgramming(minimize="flops"))
        finders.append(opt_einsum.DynamicProgramming(minimize="size"))
    if find_spec("cotengra") is not None:
        finders.append(_cotengra(max(1, max_repeats // _DEAR)))
    rng = np.random.default_rng(0)
    for _ in range(max_repeats):
        finders.append(_noisy_greedy(rng))
    for finder in finders:
        yield tree_of(count, finder(*problem))
    for _ in range(max_repeats):
        yield bisected(network, rng)
    for last in range(count) if count <= _ALL_BUT else ():
        yield _all_but(last, *problem)


def _noisy_greedy(rng: np.random.Generator) -> Callable[..., Any]:
    """Greedy by the size made against the sizes removed, at random strengths, with noise."""
    strength, temperature = rng.uniform(0.1, 4.0), 10 ** rng.uniform(-3.0, 0.0)

    def score(size12: int, size1: int, size2: int, *_: Any) -> float:
        gain = math.log(max(size12, 1)) - strength * math.log(max(size1 + size2, 1))
        return gain - temperature * float(rng.gumbel())

    return lambda *problem: opt_einsum.paths.greedy(*problem, cost_fn=score)


def _all_but(
    last: int, inputs: list[frozenset[int]], output: frozenset[int], sizes: dict[int, int]
) -> Tree:
    """All operands but one, greedily, then that one."""
    others = [k for k in range(len(inputs)) if k != last]
    terms = [inputs[k] for k in others]
    kept = frozenset().union(*terms) & (output | inputs[last])
    path = opt_einsum.paths.greedy(terms, kept, sizes)
    return (last, _renumbered(tree_of(len(others), path), others))


def _renumbered(tree: Tree, numbers: list[int]) -> Tree:
    if isinstance(tree, int):
        return numbers[tree]
    if tree[0] == "sum":
        return ("sum", numbers[tree[1]])
    return tuple(_renumbered(branch, numbers) for branch in tree)


def _cotengra(max_repeats: int) -> Callable[..., Any]:
    """Cotengra's hyper-optimiser, repeatable; the global generator that it uses is put back."""

    def find(inputs: list[frozenset[int]], output: frozenset[int], sizes: dict[int, int]) -> Any:
        import cotengra

        state = random.getstate()
        random.seed(0)
        try:
            finder = cotengra.HyperOptimizer(
                methods=["greedy", "labels"],
                max_repeats=max_repeats,
                parallel=False,
                optlib="random",
            )
            return finder([tuple(sorted(term)) for term in inputs], tuple(sorted(output)), sizes)
        finally:
            random.setstate(state)

    return find
