"""A planned contraction that also runs inside a compiled graph, where a plan's caches cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tnlib import Plan, plan_contraction

Order = tuple[tuple[tuple[int, ...], str], ...]


@dataclass(frozen=True)
class PlannedEinsum:
    """A plan, and its steps as plain data; of one operand that is only permuted, the axes.

    Axes of size one that the result does not have come last then.
    """

    plan: Plan
    order: Order
    axes: tuple[int, ...] | None

    @classmethod
    def of(cls, plan: Plan) -> PlannedEinsum:
        """The steps of a plan as data."""
        terms, output = plan.network.terms, plan.network.output
        dropped = "".join(i for i in terms[0] if i not in output)
        axes = None
        if len(terms) == 1 and all(plan.network.sizes[i] == 1 for i in dropped):
            axes = tuple(terms[0].index(index) for index in output + dropped)
        return cls(plan, tuple((step.inputs, step.equation) for step in plan.steps), axes)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        """Contract the operands, differentiably."""
        if self.axes is not None:
            return operands[0].permute(self.axes)
        if not torch.compiler.is_compiling():
            result: Tensor = self.plan(*operands)
            return result
        values = list(operands)
        for inputs, equation in self.order:
            values.append(torch.einsum(equation, *[values[k] for k in inputs]))
        return values[-1]


@lru_cache(maxsize=4096)
def planned_einsum(equation: str, *shapes: tuple[int, ...]) -> PlannedEinsum:
    """The order with fewest operations."""
    return PlannedEinsum.of(plan_contraction(equation, *shapes))
