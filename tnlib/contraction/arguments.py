"""Arguments of the planner: shapes or arrays, positions of operands, sizes of numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tnlib import _array, _checks
from tnlib.contraction.network import Shape
from tnlib.contraction.roofline import Roofline


def is_shape(operand: Any) -> bool:
    """Whether an operand is a shape, not an array."""
    return isinstance(operand, tuple | list) or not hasattr(operand, "dtype")


def shape_of(number: int, operand: Any) -> Shape:
    """The shape that an operand is or has."""
    if hasattr(operand, "shape") and hasattr(operand, "dtype"):
        return tuple(int(size) for size in operand.shape)
    if isinstance(operand, str) or not isinstance(operand, Sequence):
        raise TypeError(
            f"operand {number} must be a shape or an array, got {type(operand).__name__}"
        )
    return tuple(_checks.positive_int(f"every size of operand {number}", n, 0) for n in operand)


def positions(name: str, values: Any, count: int) -> tuple[int, ...]:
    """Sorted positions among `count` operands."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise TypeError(f"{name} must be a collection of positions, got {values!r}")
    return tuple(sorted({_checks.index(f"every entry of {name}", v, count) for v in values}))


def limit_of(value: Any) -> float | None:
    """A memory limit in bytes, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"memory_limit must be a number of bytes, got {value!r}")
    if not 0 < value < 2**1000:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {value!r}")
    return float(value)


def itemsize_of(dtype: Any, operands: Sequence[Any], roofline: Roofline | None) -> int:
    """Bytes of a number: of `dtype`, of the widest array, of the roofline's, or of float32."""
    if dtype is not None:
        size = _size_of(dtype)
        if roofline is not None and roofline.itemsize != size:
            raise ValueError(
                f"the roofline was measured for {roofline.dtype}, and dtype={dtype!r} has another "
                "size; measure one for it"
            )
        return size
    sizes = [_size_of(operand.dtype) for operand in operands if not is_shape(operand)]
    if sizes:
        return max(sizes)
    return roofline.itemsize if roofline is not None else 4


def _size_of(dtype: Any) -> int:
    try:
        name = np.dtype(dtype).name if isinstance(dtype, type) else _array.dtype_name(dtype)
        if name in ("bfloat16", "complex32"):
            return {"bfloat16": 2, "complex32": 4}[name]
        known = np.dtype(name)
    except TypeError:
        known = np.dtype(object)
    if known.kind not in "biufc":
        raise TypeError(f"dtype must be a numeric type or its name, got {dtype!r}")
    return int(known.itemsize)
