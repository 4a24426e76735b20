"""``contract`` inside a graph that torch captures.

This module is imported by what torch traces, and by nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from tnlib.contraction.objective import Minimize
from tnlib.contraction.planner import plan_contraction
from tnlib.contraction.traced import Order, run


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _planned(
    equation: str, shapes: tuple[tuple[int, ...], ...], dtype: str, minimize: Minimize, limit: float
) -> tuple[tuple[str, ...], str, str, Order]:
    """A plan as plain data, found while torch captures a graph; a limit of 0 is none."""
    plan = plan_contraction(
        equation, *shapes, dtype=dtype, minimize=minimize, memory_limit=limit or None
    )
    order = tuple((step.inputs, step.equation) for step in plan.steps)
    return plan.network.terms, plan.network.output, plan.network.stretched, order


def contract_traced(
    equation: str, operands: Sequence[Tensor], minimize: Minimize, memory_limit: float | None
) -> Tensor:
    """Plan for the sizes that the graph is captured for, and contract."""
    shapes = tuple([tuple([operator.index(size) for size in array.shape]) for array in operands])
    dtype = str(operands[0].dtype)
    terms, output, stretched, order = _planned(
        equation, shapes, dtype, minimize, memory_limit or 0.0
    )
    return run(terms, output, stretched, (), order, dict(enumerate(operands)), {})
