"""The steps of a plan as functions, made ready for arrays of given types and shapes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tnlib import _array
from tnlib._array import Array
from tnlib.contraction.kernel import compiled
from tnlib.contraction.network import Network
from tnlib.contraction.tree import Step

# A function, the numbers of its arrays, and the number of its result.
Program = tuple[tuple[Callable[..., Array], tuple[int, ...], int], ...]


def program(network: Network, steps: Sequence[Step], done: Sequence[bool], torch: Any) -> Program:
    """Functions for all steps that are not done."""
    count = len(network.terms)
    ready = []
    for k, step in enumerate(steps):
        if not done[k]:
            shapes = [tuple(network.sizes[index] for index in term) for term in step.terms]
            ready.append((compiled(step, shapes, torch), step.inputs, count + k))
    return tuple(ready)


def run(ready: Program, values: list[Array]) -> Array:
    """Run a program; `values` has a place for every number and is used up."""
    for function, inputs, number in ready:
        taken = [values[n] for n in inputs]
        for n in inputs:
            values[n] = None
        values[number] = function(*taken)
    return values[-1]


def fold(
    network: Network, steps: Sequence[Step], constants: Mapping[int, Array]
) -> dict[int, Array]:
    """The constants that the other steps need, those of constants alone being done."""
    count = len(network.terms)
    torch, dtype = one_kind([(type(array), array.dtype) for array in constants.values()])
    if dtype is not None:
        constants = {n: array.astype(dtype, copy=False) for n, array in constants.items()}
    values = {n: _array.detached(array) for n, array in constants.items()}
    for k, step in enumerate(steps):
        if all(n in values for n in step.inputs):
            taken = [values.pop(n) for n in step.inputs]
            shapes = [tuple(network.sizes[index] for index in term) for term in step.terms]
            values[count + k] = compiled(step, shapes, torch)(*taken)
    return values


def one_kind(pairs: Sequence[tuple[type, Any]]) -> tuple[Any, Any]:
    """The torch module or None, and the dtype to which NumPy arrays must be cast, if any.

    Raises
    ------
    TypeError
        If the arrays are not of one library, or are tensors of several dtypes.
    """
    torch = library({kind for kind, _ in pairs})
    dtypes = {dtype for _, dtype in pairs}
    if len(dtypes) < 2:
        return torch, None
    if torch is not None:
        names = ", ".join(sorted(_array.dtype_name(dtype) for dtype in dtypes))
        raise TypeError(f"tensors must be of one dtype, got {names}; cast them")
    return torch, np.result_type(*dtypes)


def library(types: Collection[type]) -> Any:
    """The torch module if the arrays are tensors, None if they are NumPy's.

    Raises
    ------
    TypeError
        If they are neither, or both.
    """
    torch = sys.modules.get("torch")
    tensors = torch is not None and all(issubclass(kind, torch.Tensor) for kind in types)
    if tensors or all(issubclass(kind, np.ndarray | np.generic) for kind in types):
        return torch if tensors else None
    names = ", ".join(sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in types))
    raise TypeError(
        f"all arrays must be NumPy arrays or torch tensors, of one library, got {names}; convert "
        "them with numpy.asarray, torch.from_numpy or tensor.numpy()"
    )
