"""``contract``: planned and contracted in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import ArrayT, Scalar
from tnlib.contraction.arithmetic import arrays_of, compiling
from tnlib.contraction.interleaved import equation_of
from tnlib.contraction.planner import plan_contraction


@overload
def contract(
    equation: str,
    *arrays: ArrayT | Scalar,
    minimize: Literal["flops", "memory"] = "flops",
    memory_limit: float | None = None,
) -> ArrayT: ...
@overload
def contract(
    equation: ArrayT,
    *arrays: ArrayT | Sequence[int],
    minimize: Literal["flops", "memory"] = "flops",
    memory_limit: float | None = None,
) -> ArrayT: ...
def contract(
    equation: str | Array,
    *arrays: Array,
    minimize: Literal["flops", "memory"] = "flops",
    memory_limit: float | None = None,
) -> Any:
    """Contract arrays in a planned order: ``plan_contraction(...)(*arrays)``.

    The plan is kept for further calls with arrays of the same shapes.

    Parameters
    ----------
    equation : str
        Such as ``"ij,jk->ik"``, or the interleaved form: see :func:`plan_contraction`.
    *arrays : arrays
        NumPy arrays, or torch tensors of one dtype, and Python's numbers. On torch the result is
        differentiable.
    minimize : {"flops", "memory"}, optional
        What the order makes small.
    memory_limit : float, optional
        Largest number of bytes of intermediate arrays and result at one time.

    Returns
    -------
    array
        It shares no memory with the operands. For its dtype see :meth:`Plan.__call__`.

    Raises
    ------
    TypeError, ValueError
        As :func:`plan_contraction` and :meth:`Plan.__call__`.

    Examples
    --------
    >>> import numpy as np
    >>> contract("ij,jk,k->i", np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    array([12., 12.])
    >>> contract(np.ones((2, 3)), [0, 1], np.ones((3, 4)), [1, 2], [0, 2]).shape
    (2, 4)
    """
    equation, arrays = equation_of(equation, arrays)
    if minimize not in ("flops", "memory"):
        raise ValueError(
            f"contract takes minimize='flops' or 'memory', got {minimize!r}; for 'time' make a plan"
        )
    if compiling():
        from tnlib.contraction.traced_call import contract_traced

        return contract_traced(equation, arrays, minimize, memory_limit)
    arrays = arrays_of(arrays)
    if arrays:
        backend.namespace(*arrays)
    plan = plan_contraction(equation, *arrays, minimize=minimize, memory_limit=memory_limit)
    return plan(*arrays)
