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


def required_ranks(value: Any, order: int) -> tuple[int, ...]:
    """`value` as `order` - 1 bond ranks, which must be given."""
    checked = ranks(value, order)
    if checked is None:
        raise TypeError("ranks must be an int or a sequence of ints, got None")
    return checked


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """`value` as mode sizes, at least one."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    checked = tuple(positive_int(f"every entry of {name}", size) for size in value)
    if not checked:
        raise ValueError(f"{name} must not be empty")
    return checked


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
    checked = sizes(name, value)
    if math.prod(checked) != width:
        raise ValueError(
            f"{name}={checked} has product {math.prod(checked)}, expected {width}; "
            f"tnlib.factorize({width}, {len(checked)}) gives modes that fit"
        )
    return checked


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


def index(name: str, value: Any, count: int) -> int:
    """`value` as a position among `count`; negative ones count from the end."""
    try:
        position = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, got {value!r} ({kind})") from None
    if not -count <= position < count:
        raise ValueError(f"{name} must be from {-count} to {count - 1}, got {position}")
    return position % count


def scalar(name: str, value: Any) -> Any:
    """`value`, which must be one number; NumPy's become Python's, which leave dtypes alone."""
    if isinstance(value, np.ndarray | np.number) and value.ndim == 0:
        return value.item()
    if isinstance(value, bool) or not (
        isinstance(value, int | float | complex) or getattr(value, "ndim", None) == 0
    ):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value


def count(name: str, value: Any) -> int:
    """`value` as an int of at least 0."""
    return 0 if isinstance(value, int) and value == 0 else positive_int(name, value)


def multilinear_ranks(value: Any, order: int) -> tuple[int, ...] | None:
    """`value` as one largest rank for each of `order` modes, or None for no limit."""
    if value is None:
        return None
    hint = "ranks are whole numbers; for a tolerance use eps="
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or not np.ndim(value):
        if isinstance(value, float):
            raise TypeError(f"ranks must be an int or a sequence of ints, got {value!r}; {hint}")
        return (positive_int("ranks", value),) * order
    for rank in value:
        if isinstance(rank, float):
            raise TypeError(f"ranks must be ints, got {rank!r}; {hint}")
    numbers = tuple(positive_int("every rank", rank) for rank in value)
    if len(numbers) != order:
        raise ValueError(
            f"ranks must be one int or {order} ints, one a mode, got {len(numbers)}: {numbers}"
        )
    return numbers


def tucker(core: Any, factors: Any) -> tuple[Array, ...]:
    """The factors of a Tucker decomposition, checked against its core."""
    arrays = matrices(factors)
    _array.namespace(core, *arrays)
    if core.ndim != len(arrays):
        raise ValueError(f"a core of {core.ndim} axes needs as many factors, got {len(arrays)}")
    for k, (factor, rank) in enumerate(zip(arrays, core.shape, strict=True)):
        if factor.shape[1] != rank:
            raise ValueError(
                f"factor {k} has {factor.shape[1]} columns and axis {k} of the core {rank}"
            )
    if 0 in core.shape:
        raise ValueError(f"the core is empty: its shape is {tuple(core.shape)}")
    one_dtype([core, *arrays], "core and factors")
    return arrays


def cp(weights: Any, factors: Any) -> tuple[Array, ...]:
    """The factors of a CP decomposition, checked against its weights."""
    arrays = matrices(factors)
    _array.namespace(weights, *arrays)
    if weights.ndim != 1:
        raise ValueError(f"weights must be a vector, got shape {tuple(weights.shape)}")
    for k, factor in enumerate(arrays):
        if factor.shape[1] != weights.shape[0]:
            raise ValueError(
                f"factor {k} has {factor.shape[1]} columns for {weights.shape[0]} weights"
            )
    one_dtype([weights, *arrays], "weights and factors")
    return arrays


def matrices(values: Any) -> tuple[Array, ...]:
    """`values` as a non-empty tuple of non-empty matrices."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"factors must be a sequence of matrices, got {type(values).__name__}")
    arrays = tuple(values)
    if not arrays:
        raise ValueError("factors must not be empty")
    _array.namespace(*arrays)
    for k, factor in enumerate(arrays):
        if factor.ndim != 2 or 0 in factor.shape:
            raise ValueError(
                f"factor {k} must be a non-empty matrix, got shape {tuple(factor.shape)}"
            )
    return arrays


def one_dtype(arrays: Sequence[Array], what: str) -> None:
    """Refuse arrays of different dtypes."""
    if len({array.dtype for array in arrays}) > 1:
        names = ", ".join(_array.dtype_name(array.dtype) for array in arrays)
        raise TypeError(f"all {what} must have one dtype, got {names}")
