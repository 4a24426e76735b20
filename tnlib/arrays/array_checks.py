"""Checks of the arrays that are given: data, and the parts of a format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tnlib.arrays import backend, checks
from tnlib.arrays.backend import Array


def tensor(name: str, value: Any) -> Array:
    """`value` as a non-empty numeric array that holds data; finiteness is checked later."""
    xp = backend.namespace(value)
    value = backend.base(value)
    if backend.is_torch(value):
        if backend.is_wrapper(value):
            raise TypeError(
                f"{name} is a {type(value).__name__}, whose entries are not plain data; pass an "
                "ordinary tensor, for example from dequantize() or full_tensor()"
            )
        if value.device.type == "meta":
            raise ValueError(f"{name} is on the meta device and holds no data; load it first")
        if value.layout != xp.strided or value.is_quantized:
            raise TypeError(
                f"{name} must be a dense tensor, got {value.layout}; use to_dense() or dequantize()"
            )
    value = backend.plain(value)
    if not _is_numeric(xp, value.dtype):
        raise TypeError(
            f"{name} must be numeric (integers, booleans, {', '.join(backend.FLOATING)}), got "
            f"dtype {value.dtype}; cast it"
        )
    if backend.dtype_name(value.dtype) in ("longdouble", "clongdouble", "float128", "complex256"):
        raise TypeError(f"{name} has dtype {value.dtype}, which LAPACK lacks; use float64")
    if 0 in value.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(value.shape)}")
    return value


def _is_numeric(xp: Any, dtype: Any) -> bool:
    """Whether the package computes with numbers of this dtype."""
    name = backend.dtype_name(dtype)
    if name.startswith(("float8", "float4")):
        return False
    return backend.is_half(dtype) or bool(xp.isdtype(dtype, ("bool", "numeric")))


def cores(values: Any, ndim: int, layout: str) -> tuple[Array, ...]:
    """`values` as arrays of one library, each `ndim`-way, whose bonds agree and close with 1."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"cores must be a sequence of arrays, got {type(values).__name__}")
    arrays = tuple(values)
    if not arrays:
        raise ValueError("cores must not be empty")
    backend.namespace(*arrays)
    arrays = tuple(map(backend.base, arrays))
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
    one_dtype(arrays, "cores")
    return arrays


def tucker(core: Any, factors: Any, modes: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """The factors of a Tucker decomposition, checked against its core, and their modes.

    Without `modes` there is a factor for each, or none at all.
    """
    for name, value in (("factors", factors), ("modes", modes)):
        if not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
            raise TypeError(f"{name} must be a sequence, got {type(value).__name__}")
    arrays = matrices(factors) if len(factors) else ()
    backend.namespace(core, *arrays)
    chosen = checks.modes(modes, core.ndim) if len(modes) else tuple(range(core.ndim))
    if arrays and len(arrays) != len(chosen):
        raise ValueError(
            f"a core of {core.ndim} axes needs as many factors, or modes= that say whose they are, "
            f"got {len(arrays)} factors and modes={tuple(modes)}"
        )
    if list(chosen) != sorted(chosen):
        raise ValueError(f"modes must ascend, got {chosen}")
    if not arrays:
        chosen = ()
    for k, factor in zip(chosen, arrays, strict=True):
        if factor.shape[1] != core.shape[k]:
            raise ValueError(
                f"factor {k} has {factor.shape[1]} columns and axis {k} of the core {core.shape[k]}"
            )
    if 0 in core.shape:
        raise ValueError(f"the core is empty: its shape is {tuple(core.shape)}")
    one_dtype([core, *arrays], "core and factors")
    return arrays, chosen


def cp(weights: Any, factors: Any) -> tuple[Array, ...]:
    """The factors of a CP decomposition, checked against its weights."""
    arrays = matrices(factors)
    backend.namespace(weights, *arrays)
    if weights.ndim != 1:
        raise ValueError(f"weights must be a vector, got shape {tuple(weights.shape)}")
    for k, factor in enumerate(arrays):
        if factor.shape[1] != weights.shape[0]:
            raise ValueError(
                f"factor {k} has {factor.shape[1]} columns for {weights.shape[0]} weights"
            )
    name, real = (backend.dtype_name(array.dtype) for array in (arrays[0], weights))
    if name.startswith("complex") and real == f"float{int(name[7:]) // 2}":
        one_dtype(arrays, "factors")
    else:
        one_dtype([weights, *arrays], "weights and factors")
    return arrays


def matrices(values: Any) -> tuple[Array, ...]:
    """`values` as a non-empty tuple of non-empty matrices."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"factors must be a sequence of matrices, got {type(values).__name__}")
    arrays = tuple(values)
    if not arrays:
        raise ValueError("factors must not be empty")
    backend.namespace(*arrays)
    arrays = tuple(map(backend.base, arrays))
    for k, factor in enumerate(arrays):
        if factor.ndim != 2 or 0 in factor.shape:
            raise ValueError(
                f"factor {k} must be a non-empty matrix, got shape {tuple(factor.shape)}"
            )
    return arrays


def finite(name: str, arrays: Sequence[Array]) -> None:
    """Refuse nan and inf in the parts of a format."""
    if not all(backend.magnitude(backend.plain(array)) < float("inf") for array in arrays):
        raise ValueError(f"{name} contains nan or inf")


def one_dtype(arrays: Sequence[Array], what: str) -> None:
    """Refuse arrays of different dtypes, and dtypes that are not floating point."""
    dtype = arrays[0].dtype
    if backend.dtype_name(dtype) not in backend.FLOATING:
        raise TypeError(
            f"all {what} must be floating point ({', '.join(backend.FLOATING)}), got "
            f"{backend.dtype_name(dtype)}; cast them"
        )
    if len({array.dtype for array in arrays}) > 1:
        names = ", ".join(backend.dtype_name(array.dtype) for array in arrays)
        raise TypeError(f"all {what} must have one dtype, got {names}")


def alike(name: str, values: Any) -> Sequence[Array]:
    """Arrays of one shape, library and dtype, from a sequence or the first axis of an array."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        array = tensor(name, values)
        if array.ndim == 0:
            raise ValueError(f"{name} must hold arrays, got a single number")
        return list(array)
    if not values:
        raise ValueError(f"{name} must not be empty")
    arrays = [tensor(f"{name}[{k}]", value) for k, value in enumerate(values)]
    backend.namespace(*arrays)
    shapes = sorted({tuple(array.shape) for array in arrays})
    if len(shapes) > 1:
        raise ValueError(f"{name} must have one shape, got {', '.join(map(str, shapes))}")
    if len({array.dtype for array in arrays}) > 1:
        names = ", ".join(sorted({backend.dtype_name(array.dtype) for array in arrays}))
        raise TypeError(f"all arrays of {name} must have one dtype, got {names}")
    return arrays


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays as one, along a new first axis."""
    return backend.namespace(*arrays).stack(list(arrays))
