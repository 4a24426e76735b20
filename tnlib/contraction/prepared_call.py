"""What a plan makes ready for arrays of given types, dtypes and shapes, once, and then runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tnlib.arrays.backend import Array
from tnlib.contraction import slicing
from tnlib.contraction.arithmetic import Arithmetic
from tnlib.contraction.constants import Constants
from tnlib.contraction.cost import folded_steps
from tnlib.contraction.network import Network, Shape
from tnlib.contraction.planned_steps import PlannedSteps
from tnlib.contraction.program import Program, copied, program, run
from tnlib.contraction.tree import Step

# Type, dtype and shape of every array, as far as each is known.
Kinds = tuple[tuple[type, Any], ...]
About = tuple[tuple[type, Any, Shape], ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A plan for arrays of these types, dtypes and shapes.

    Attributes
    ----------
    network : Network
        With the sizes of the arrays.
    steps : tuple of Step
        Those of the plan, for this network.
    sliced : tuple of str
        The indices to slice.
    takes : tuple of int
        The operands that are given.
    arithmetic : Arithmetic
        How they are brought together.
    ready : Program
        The functions of the steps.
    """

    network: Network
    steps: tuple[Step, ...]
    sliced: tuple[str, ...]
    takes: tuple[int, ...]
    arithmetic: Arithmetic
    ready: Program

    def __call__(self, arrays: Sequence[Array], constants: Constants | None) -> Array:
        """The contraction of the arrays and what was folded."""
        arithmetic = self.arithmetic
        if arithmetic.tensors:
            if arithmetic.mixed:
                arithmetic.check_autocast(arrays[0].device)
            return self._contracted(arrays, constants)
        try:
            return self._of_numpy(arrays, constants)
        except FloatingPointError:
            # A number that underflows is zero, also where it is made an error. Entering errstate
            # takes as long as a small product, so that it is left to this case.
            with np.errstate(under="ignore"):
                return self._of_numpy(arrays, constants)

    def _of_numpy(self, arrays: Sequence[Array], constants: Constants | None) -> Array:
        arithmetic = self.arithmetic
        if arithmetic.cast:
            arrays = arithmetic.brought(arrays)
        result = self._contracted(arrays, constants)
        if type(result) is np.ndarray and result.dtype == arithmetic.result:
            return result
        return np.asarray(result, dtype=arithmetic.result)

    def _contracted(self, arrays: Sequence[Array], constants: Constants | None) -> Array:
        if self.sliced:
            terms, output = self.network.terms, self.network.output
            return slicing.run(
                terms, output, self.sliced, lambda some: self._run(some, constants), arrays
            )
        return self._run(arrays, constants)

    def _run(self, arrays: Sequence[Array], constants: Constants | None) -> Array:
        if constants is None:
            return run(self.ready, [*arrays, *[None] * len(self.steps)])
        values: list[Array] = [None] * (len(self.network.terms) + len(self.steps))
        for number, array in zip(self.takes, arrays, strict=True):
            values[number] = array
        for number, array in constants.folded(self.network, self.steps, self.arithmetic):
            values[number] = array
        result = run(self.ready, values)
        return result if self.ready else copied(result)


@lru_cache(maxsize=4096)
def prepared(plan: PlannedSteps, known: Kinds, about: About) -> Call:
    """What a plan does with arrays about which this is known.

    `known` are types and dtypes of the constants that were folded. Plans with arrays never come
    here, since what does is kept.
    """
    folded = plan.constants if known else ()
    takes = tuple(k for k in range(len(plan.network.terms)) if k not in folded)
    if len(about) != len(takes):
        raise ValueError(f"the plan takes {len(takes)} arrays, got {len(about)}")
    arithmetic = Arithmetic.of([*known, *((kind, dtype) for kind, dtype, _ in about)])
    shapes = list(plan.shapes)
    for number, (_, _, shape) in zip(takes, about, strict=True):
        shapes[number] = shape
    network = plan.network.resized(shapes)
    steps = plan.steps_for(network)
    sliced = tuple(index for index in plan.sliced if network.sizes.get(index))
    one = slicing.inner(network, sliced)
    done = folded_steps(len(network.terms), steps, folded)
    return Call(network, steps, sliced, takes, arithmetic, program(one, steps, done, arithmetic))
