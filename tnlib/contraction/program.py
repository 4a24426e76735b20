"""The steps of a plan as functions, made ready for arrays of given types and shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tnlib.arrays.backend import Array
from tnlib.contraction.arithmetic import Arithmetic
from tnlib.contraction.kernel import compiled
from tnlib.contraction.network import Network
from tnlib.contraction.tree import Step

# A function, the numbers of its arrays, and the number of its result.
Program = tuple[tuple[Callable[..., Array], tuple[int, ...], int], ...]


def program(
    network: Network, steps: Sequence[Step], done: Sequence[bool], arithmetic: Arithmetic
) -> Program:
    """Functions for all steps that are not done; the result is no view of an operand."""
    count = len(network.terms)
    ready = []
    for k, step in enumerate(steps):
        if not done[k]:
            function = compiled_step(network, step, arithmetic)
            if k == len(steps) - 1 and may_be_view(network, step):
                function = _owning(function)
            ready.append((function, step.inputs, count + k))
    return tuple(ready)


def compiled_step(network: Network, step: Step, arithmetic: Arithmetic) -> Callable[..., Array]:
    """The function of one step."""
    shapes = [tuple(network.sizes[index] for index in term) for term in step.terms]
    return compiled(step, shapes, arithmetic.torch, arithmetic.kind)


def may_be_view(network: Network, step: Step) -> bool:
    """Whether a step gives back entries of its array: a permutation or a diagonal."""
    summed = set(step.terms[0]) - set(step.result)
    return len(step.terms) == 1 and all(network.sizes[index] == 1 for index in summed)


def _owning(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arrays: copied(function(*arrays))


def copied(array: Array) -> Array:
    """A differentiable copy."""
    return array.copy() if isinstance(array, np.ndarray | np.generic) else array.clone()


def run(ready: Program, values: list[Array]) -> Array:
    """Run a program; `values` has a place for every number and is used up."""
    for function, inputs, number in ready:
        taken = [values[n] for n in inputs]
        for n in inputs:
            values[n] = None
        values[number] = function(*taken)
    return values[-1]
