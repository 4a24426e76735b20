"""Argument checks, in one place: every message says what came, what was expected, what to do."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tnlib import _array
from tnlib._array import Array

METHODS = ("auto", "svd", "gram", "krylov")


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} (bool)")
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, got {value!r} ({kind})") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def ranks(value: Any, order: int) -> tuple[int, ...] | None:
    """`value` as `order` - 1 maximal bond ranks, or None for no limit.

    Accepts None, one int for every bond, `order` - 1 ints, or `order` + 1 ints with ones outside.
    """
    if value is None:
        return None
    hint = "ranks are whole numbers; for a tolerance use eps="
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or not np.ndim(value):
        if isinstance(value, float):
            raise TypeError(f"ranks must be an int or a sequence of ints, got {value!r}; {hint}")
        return (positive_int("ranks", value),) * (order - 1)
    given = list(value)
    for rank in given:
        if isinstance(rank, float):
            raise TypeError(f"ranks must be ints, got {rank!r}; {hint}")
    numbers = tuple(positive_int("every rank", rank) for rank in given)
    if len(numbers) == order + 1 and numbers[0] == numbers[-1] == 1:
        return numbers[1:-1]
    if len(numbers) != order - 1:
        raise ValueError(
            f"ranks must be one int or {order - 1} ints for {order} cores "
            f"({order + 1} with a 1 at both ends is accepted too), got {len(numbers)}: {numbers}"
        )
    return numbers


def eps(value: Any) -> float | None:
    """`value` as a relative tolerance strictly between 0 and 1, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"eps must be a real number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(
            f"eps is a relative error and must lie strictly between 0 and 1, got {value!r}; "
            "for a decomposition without loss take a small one such as 1e-12 (float64)"
        )
    return number


def truncation(
    ranks_value: Any, eps_value: Any, order: int
) -> tuple[tuple[int, ...] | None, float | None]:
    """Check ranks and eps together: at least one of them must be given."""
    if ranks_value is None and eps_value is None:
        raise ValueError(
            "give ranks= (largest bond ranks), eps= (relative error), or both; got neither"
        )
    return ranks(ranks_value, order), eps(eps_value)


def method(value: Any) -> str:
    """One of the kernel names."""
    if value not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {value!r}")
    return str(value)


def dims(name: str, value: Any, width: int) -> tuple[int, ...]:
    """`value` as mode sizes whose product is `width`."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    sizes = tuple(positive_int(f"every entry of {name}", size) for size in value)
    if not sizes:
        raise ValueError(f"{name} must not be empty")
    if math.prod(sizes) != width:
        raise ValueError(
            f"{name}={sizes} has product {math.prod(sizes)}, expected {width}; "
            f"tnlib.factorize({width}, {len(sizes)}) gives modes that fit"
        )
    return sizes


def tensor(name: str, value: Any) -> Array:
    """`value` as a non-empty numeric array that holds data; finiteness is checked later."""
    xp = _array.namespace(value)
    if _array.is_torch(value):
        if value.device.type == "meta":
            raise ValueError(f"{name} is on the meta device and holds no data; load it first")
        if value.layout != xp.strided or value.is_quantized:
            raise TypeError(
                f"{name} must be a dense tensor, got {value.layout}; use to_dense() or dequantize()"
            )
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill its holes first, with filled()")
    elif not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    value = _array.plain(value)
    if not xp.isdtype(value.dtype, ("bool", "numeric")) and not _array.is_half(value.dtype):
        raise TypeError(f"{name} must be numeric, got dtype {value.dtype}")
    if _array.dtype_name(value.dtype) in ("longdouble", "clongdouble", "float128", "complex256"):
        raise TypeError(f"{name} has dtype {value.dtype}, which LAPACK lacks; use float64")
    if 0 in value.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(value.shape)}")
    return value


def cores(values: Any, ndim: int, layout: str) -> tuple[Array, ...]:
    """`values` as arrays of one library, each `ndim`-way, whose bonds agree and close with 1."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"cores must be a sequence of arrays, got {type(values).__name__}")
    arrays = tuple(values)
    if not arrays:
        raise ValueError("cores must not be empty")
    _array.namespace(*arrays)
    for k, core in enumerate(arrays):
        if core.ndim != ndim:
            raise ValueError(f"core {k} must be {layout}, got shape {tuple(core.shape)}")
        if 0 in core.shape:
            raise ValueError(f"core {k} is empty: its shape is {tuple(core.shape)}")
    for k, (left, right) in enumerate(itertools.pairwise(arrays)):
        if left.shape[-1] != right.shape[0]:
            raise ValueError(
                f"cores {k} and {k + 1} do not share a bond: {tuple(left.shape)} ends with "
                f"{left.shape[-1]}, {tuple(right.shape)} begins with {right.shape[0]}"
            )
    if arrays[0].shape[0] != 1 or arrays[-1].shape[-1] != 1:
        raise ValueError(
            "the outer bonds must be 1, got "
            f"{arrays[0].shape[0]} on the left and {arrays[-1].shape[-1]} on the right"
        )
    if len({core.dtype for core in arrays}) > 1:
        names = ", ".join(_array.dtype_name(core.dtype) for core in arrays)
        raise TypeError(f"all cores must have one dtype, got {names}")
    return arrays
