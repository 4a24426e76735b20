"""Arguments of the planner: shapes or arrays, positions of operands, sizes of numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from tnlib.arrays import backend, checks
from tnlib.arrays.backend import Array
from tnlib.contraction.network import Shape
from tnlib.contraction.roofline import Roofline

if TYPE_CHECKING:
    import torch

# An array, or its shape alone; a dtype of either library, or its name.
Operand: TypeAlias = Sequence[int] | Array
DType: TypeAlias = Union[npt.DTypeLike, "torch.dtype"]
_NUMERIC = "arrays must be of integers, booleans, or float16 to complex128"
# Of one axis, for NumPy and torch alike.
_LARGEST = 2**63 - 1


def is_shape(operand: Any) -> bool:
    """Whether an operand is a shape, not an array."""
    return isinstance(operand, tuple | list) or not hasattr(operand, "dtype")


def shape_of(number: int, operand: Any) -> Shape:
    """The shape that an operand is or has."""
    if type(operand) is np.ndarray:
        known: Shape = operand.shape
        return known
    if hasattr(operand, "shape") and hasattr(operand, "dtype"):
        return tuple(int(size) for size in operand.shape)
    if isinstance(operand, str) or not isinstance(operand, Sequence):
        raise TypeError(
            f"operand {number} must be a shape or an array, got {type(operand).__name__}"
        )
    sizes = tuple(checks.positive_int(f"every size of operand {number}", n, 0) for n in operand)
    if any(size > _LARGEST for size in sizes):
        raise ValueError(f"every size of operand {number} must be at most {_LARGEST}, got {sizes}")
    return sizes


def positions(name: str, values: Any, count: int) -> tuple[int, ...]:
    """Sorted positions among `count` operands."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection) or _is_single(values):
        raise TypeError(f"{name} must be a collection of positions, got {values!r}")
    return tuple(sorted({checks.index(f"every entry of {name}", v, count) for v in values}))


def _is_single(values: Any) -> bool:
    """Whether these are a number in the shape of an array."""
    return getattr(values, "ndim", 1) == 0


def limit_of(value: Any) -> float | None:
    """A memory limit in bytes, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"memory_limit must be a number of bytes, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < 2**1000:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {value!r}")
    return number


def itemsize_of(dtype: DType | None, operands: Sequence[Operand], roofline: Roofline | None) -> int:
    """Bytes of a number: of `dtype`, of that in which the arrays are computed, of the roofline's.

    Without any, of float32.
    """
    if dtype is not None:
        size = _size_of(dtype)
        if roofline is not None and roofline.itemsize != size:
            raise ValueError(
                f"the roofline was measured for {roofline.dtype}, and dtype={dtype!r} has another "
                "size; measure one for it"
            )
        return size
    arrays: list[Array] = [operand for operand in operands if not is_shape(operand)]
    if arrays:
        return _size_of_all(frozenset([array.dtype for array in arrays]))
    return roofline.itemsize if roofline is not None else 4


@lru_cache(maxsize=256)
def _size_of_all(dtypes: frozenset[Any]) -> int:
    """Bytes of a number in the precision in which arrays of these dtypes are computed."""
    sizes = [_size_of(found, _NUMERIC) for found in dtypes]
    if all(isinstance(found, np.dtype) for found in dtypes):
        return _size_of(backend.working_dtype(np, np.result_type(*dtypes)))
    return max(sizes)


def _size_of(dtype: Any, what: str = "dtype must be a numeric type or its name") -> int:
    try:
        name = np.dtype(dtype).name if isinstance(dtype, type) else backend.dtype_name(dtype)
        if name in ("bfloat16", "complex32"):
            return {"bfloat16": 2, "complex32": 4}[name]
        known = np.dtype(name)
    except (TypeError, ValueError):
        known = np.dtype(object)
    if known.kind not in "biufc":
        raise TypeError(f"{what}, got {dtype!r}")
    return int(known.itemsize)
