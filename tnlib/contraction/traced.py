"""Plans inside a graph that torch captures, where their caches cannot be looked up.

There the steps are single einsums, which hold for any size. This module is imported by what torch
traces, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tnlib.contraction import slicing
from tnlib.contraction.arithmetic import DTYPES
from tnlib.contraction.kernel import traceable
from tnlib.contraction.network import check_sizes

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
