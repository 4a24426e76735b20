"""Contraction of a whole network, as a sequence of pairwise products chosen beforehand.

The order decides the cost. It is searched once (opt_einsum's optimisers) for given shapes and
kept in a :class:`Plan`, which then runs on NumPy and torch arrays alike and is differentiable
on torch.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import opt_einsum

from tnlib import _array
from tnlib._array import Array

# Operands up to which every order is considered.
_EXACT = 8


@dataclass(frozen=True)
class Plan:
    """A fixed order of pairwise contractions; call it with the operands.

    Attributes
    ----------
    equation : str
        The einsum equation of the whole network.
    steps : tuple of (tuple of int, str)
        Positions of the operands of each step in the shrinking list, and its equation. The
        result of a step goes to the end of the list.
    flops : int
        Operations, as opt_einsum counts them (twice the products where an index is summed).
    largest : int
        Elements of the largest intermediate or result.
    """

    equation: str
    steps: tuple[tuple[tuple[int, ...], str], ...]
    flops: int
    largest: int

    def __call__(self, *arrays: Array) -> Array:
        """Contract `arrays`, which may differ from the planned shapes in the size of an index."""
        _array.namespace(*arrays)
        operands = list(arrays)
        for positions, equation in self.steps:
            taken = [operands[p] for p in positions]
            operands = [x for p, x in enumerate(operands) if p not in positions]
            operands.append(_einsum(equation, taken))
        return operands[0]


@lru_cache(maxsize=1024)
def plan_contraction(equation: str, *shapes: tuple[int, ...]) -> Plan:
    """Find an order of pairwise products with few operations.

    Up to eight operands the best order is found; beyond that, whose search takes exponential
    time, a greedy one.

    Parameters
    ----------
    equation : str
        Explicit einsum equation such as ``"ij,jk,kl->il"``.
    *shapes : tuple of int
        One shape per operand.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If the equation and the shapes do not fit.

    Examples
    --------
    >>> plan = plan_contraction("ij,jk,k->i", (9, 8), (8, 7), (7,))
    >>> [step for _, step in plan.steps]
    ['b,ab->a', 'b,ab->a']
    """
    if "->" not in equation:
        raise ValueError(f"the equation must name its result with '->', got {equation!r}")
    optimizer = "dp" if len(shapes) <= _EXACT else "greedy"
    _, report = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimizer)
    steps = tuple((tuple(step[0]), _relabelled(str(step[2]))) for step in report.contraction_list)
    return Plan(equation, steps, int(report.opt_cost), int(report.largest_intermediate))


def _relabelled(equation: str) -> str:
    """The equation of one step in the letters that every einsum knows."""
    symbols = sorted({symbol for symbol in equation if symbol not in ",->"})
    names = dict(zip(symbols, string.ascii_letters, strict=False))
    return "".join(names.get(symbol, symbol) for symbol in equation)


def _einsum(equation: str, operands: list[Array]) -> Array:
    if _array.is_torch(operands[0]):
        return _torch_einsum(equation, operands)
    return np.einsum(equation, *operands, optimize=len(operands) > 1)


def _torch_einsum(equation: str, operands: list[Any]) -> Any:
    import torch

    return torch.einsum(equation, *operands)
