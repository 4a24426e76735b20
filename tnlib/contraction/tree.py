"""Orders of contraction: as a tree, as steps to run, and as a path in opt_einsum's form.

A tree is an operand's number, ``("sum", number)`` for an operand whose lone indices are summed
first, or a pair of trees, of which the first is computed first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, TypeAlias

from tnlib.contraction.network import Network

Tree: TypeAlias = Any
Path: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """One contraction of one or two arrays.

    Attributes
    ----------
    inputs : tuple of int
        Numbers of the arrays: operands first, then the results of the steps in order.
    terms : tuple of str
        Their indices.
    result : str
        The indices of the result.
    """

    inputs: tuple[int, ...]
    terms: tuple[str, ...]
    result: str

    @property
    def equation(self) -> str:
        """The einsum equation of this step."""
        return f"{','.join(self.terms)}->{self.result}"


def steps_of(network: Network, tree: Tree) -> tuple[Step, ...]:
    """The steps of a tree, in the order of execution."""
    inputs: list[tuple[int, ...]] = []

    def walk(node: Tree) -> int:
        """The number of the array that a tree computes."""
        if isinstance(node, int):
            return node
        inputs.append((node[1],) if node[0] == "sum" else (walk(node[0]), walk(node[1])))
        return len(network.terms) + len(inputs) - 1

    walk(tree)
    return along(network, inputs)


def along(network: Network, inputs: Iterable[tuple[int, ...]]) -> tuple[Step, ...]:
    """The steps that take the arrays of these numbers, the last of which makes the result."""
    steps: list[Step] = []
    terms = list(network.terms)
    below = [1 << k for k in range(len(terms))]
    everything = (1 << len(terms)) - 1
    for numbers in inputs:
        taken = tuple(terms[k] for k in numbers)
        covered = reduce(or_, (below[k] for k in numbers))
        last = covered == everything
        result = network.output if last else _kept(network, taken, covered)
        steps.append(Step(numbers, taken, result))
        terms.append(result)
        below.append(covered)
    return tuple(steps)


def _kept(network: Network, terms: Sequence[str], below: int) -> str:
    """The indices of `terms` that the result or an operand not below still needs."""
    needed = set(network.output)
    needed.update(*(term for k, term in enumerate(network.terms) if not below >> k & 1))
    return "".join(index for index in dict.fromkeys("".join(terms)) if index in needed)


def path_of(count: int, steps: Sequence[Step]) -> Path:
    """The path of the steps: positions in a list whose used arrays are taken off.

    Every result goes to the end of the list, as in opt_einsum and NumPy.
    """
    left = list(range(count))
    path = []
    for k, step in enumerate(steps):
        positions = tuple(sorted(left.index(number) for number in step.inputs))
        path.append(positions)
        left = [number for number in left if number not in step.inputs]
        left.append(count + k)
    return tuple(path)


def tree_of(count: int, path: Sequence[Sequence[int]]) -> Tree:
    """The tree of a path.

    Raises
    ------
    ValueError
        If a step has more than two operands, or the path does not end with one array.
    """
    left: list[Tree] = list(range(count))
    for number, positions in enumerate(path):
        if not 1 <= len(positions) <= 2:
            raise ValueError(f"step {number} takes {len(positions)} arrays; two at most")
        taken = [left[p] for p in sorted(positions)]
        left = [node for p, node in enumerate(left) if p not in positions]
        left.append(_joined(taken))
    if len(left) != 1:
        raise ValueError(f"the path leaves {len(left)} arrays uncontracted")
    return left[0]


def _joined(taken: Sequence[Tree]) -> Tree:
    if len(taken) == 2:
        return (taken[0], taken[1])
    return ("sum", taken[0]) if isinstance(taken[0], int) else taken[0]
