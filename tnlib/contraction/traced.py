"""Plans inside a graph that torch captures, where their caches cannot be looked up.

There the steps are single einsums, which hold for any size. This module is imported by what torch
traces, and by nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tnlib.contraction import slicing
from tnlib.contraction.arithmetic import DTYPES
from tnlib.contraction.kernel import traceable
from tnlib.contraction.network import check_sizes
from tnlib.contraction.objective import Minimize
from tnlib.contraction.planner import plan_contraction

# The numbers of a step's arrays, and its equation.
Order = tuple[tuple[tuple[int, ...], str], ...]

_DTYPES = tuple(getattr(torch, name) for name in DTYPES)


def run(
    terms: Sequence[str],
    output: str,
    stretched: str,
    sliced: Sequence[str],
    order: Order,
    operands: Mapping[int, Tensor],
    folded: Mapping[int, Tensor],
) -> Tensor:
    """Contract operands and folded arrays, by their numbers."""
    numbers = tuple(operands)
    own = [terms[k] for k in numbers]
    for array in operands.values():
        if array.dtype not in _DTYPES:
            raise TypeError(f"tensors must be of one of {_DTYPES}, got {array.dtype}; cast it")
    check_sizes(own, [operands[k].shape for k in numbers])
    for number, term in zip(numbers, own, strict=True):
        for axis, index in enumerate(term):
            if index in stretched and operands[number].shape[axis] != 1:
                raise ValueError(
                    f"operand {number} was planned to be broadcast along axis {axis}; inside a "
                    "captured graph the plan must be one for its shape"
                )

    def one(arrays: Sequence[Tensor]) -> Tensor:
        values = dict(folded)
        values.update(zip(numbers, arrays, strict=True))
        for number, (inputs, equation) in enumerate(order, len(terms)):
            if all(k in values for k in inputs):
                values[number] = traceable(equation, [values.pop(k) for k in inputs])
        result = values[len(terms) + len(order) - 1]
        return result.clone() if len(order[-1][0]) == 1 or not numbers else result

    present = [index for index in sliced if index in "".join(own)]
    result: Tensor = slicing.run(own, output, present, one, [operands[k] for k in numbers])
    return result


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def planned(
    equation: str, shapes: tuple[tuple[int, ...], ...], dtype: str, minimize: Minimize, limit: float
) -> tuple[tuple[str, ...], str, str, Order]:
    """A plan as plain data, found while torch captures a graph; a limit of 0 is none."""
    plan = plan_contraction(
        equation, *shapes, dtype=dtype, minimize=minimize, memory_limit=limit or None
    )
    order = tuple((step.inputs, step.equation) for step in plan.steps)
    return plan.network.terms, plan.network.output, plan.network.stretched, order


def contract(
    equation: str, operands: Sequence[Tensor], minimize: Minimize, memory_limit: float | None
) -> Tensor:
    """Plan for the sizes that the graph is captured for, and contract."""
    shapes = tuple([tuple([operator.index(size) for size in array.shape]) for array in operands])
    dtype = str(operands[0].dtype)
    terms, output, stretched, order = planned(
        equation, shapes, dtype, minimize, memory_limit or 0.0
    )
    return run(terms, output, stretched, (), order, dict(enumerate(operands)), {})
