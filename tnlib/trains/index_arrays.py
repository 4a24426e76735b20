"""Index arrays: which entries of a chain are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array


def per_axis(value: Any, sizes: Sequence[int], like: Array) -> tuple[list[Array], tuple[int, ...]]:
    """`value` as one flat array of positions for each axis, and the shape that they had.

    An array has the axes last; a tuple or list has one integer or integer array for each.
    """
    if isinstance(value, tuple | list):
        if len(value) != len(sizes):
            raise ValueError(
                f"indices must hold one array for each of {len(sizes)} axes, got {len(value)}"
            )
        parts = [integers(f"indices[{k}]", part, like) for k, part in enumerate(value)]
    else:
        array = integers("indices", value, like)
        if array.ndim == 0 or array.shape[-1] != len(sizes):
            raise ValueError(
                f"indices must be an array of shape (..., {len(sizes)}), one column for each axis, "
                f"or a tuple of {len(sizes)} arrays, got shape {tuple(array.shape)}"
            )
        parts = [array[..., k] for k in range(len(sizes))]
    named = [f"the index of axis {k}" for k in range(len(sizes))]
    checked = [positions(*item) for item in zip(named, parts, sizes, strict=True)]
    return broadcast(checked)


def paired(index: Sequence[Array], widths: Sequence[int]) -> list[Array]:
    """Positions in the modes i_k j_k, of those in row modes, then in column modes."""
    half = len(widths)
    triples = zip(index[:half], index[half:], widths, strict=True)
    return [row * width + column for row, column, width in triples]


def digits(name: str, value: Any, dims: Sequence[int], size: int, like: Array) -> list[Array]:
    """Numbers of rows or columns as their digits, the last running fastest; or digits as given."""
    if isinstance(value, tuple | list):
        if len(value) != len(dims):
            raise ValueError(
                f"{name} must be an integer array, or a tuple of one array for each of "
                f"{len(dims)} modes, got {len(value)}"
            )
        parts = [integers(f"{name}[{k}]", part, like) for k, part in enumerate(value)]
        named = [f"{name}[{k}]" for k in range(len(dims))]
        return [positions(*item) for item in zip(named, parts, dims, strict=True)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [integers(name, digit, like) for digit in _digits(index_of(name, value, size), dims)]
    number = integers(name, value, like)
    if size < 2**63:
        number = positions(name, number, size)
    # Position -1 has all the largest digits, and -1 - i what is left of them by those of i.
    xp = array_namespace(number)
    below = number < 0
    found = _digits(xp.where(below, -1 - number, number), dims)
    pairs = zip(found, dims, strict=True)
    return [xp.where(below, dim - 1 - digit, digit) for digit, dim in pairs]


def _digits(number: Any, dims: Sequence[int]) -> list[Any]:
    """The digits of whole numbers in mixed radix, the last running fastest."""
    found = []
    for dim in reversed(dims):
        found.append(number % dim)
        number = number // dim
    return found[::-1]


def index_of(name: str, value: int, size: int) -> int:
    """One position, of any size."""
    if not -size <= value < size:
        raise IndexError(f"{name} must be from {-size} to {size - 1}, got {value}")
    return value % size


def integers(name: str, value: Any, like: Array) -> Array:
    """`value` as an int64 array in the library and on the device of `like`."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise IndexError(f"{name} is out of range: {value}")
        value = np.asarray(value, dtype=np.int64)
    try:
        xp = backend.namespace(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer array of NumPy or torch: {error}") from None
    if not xp.isdtype(value.dtype, "integral"):
        raise TypeError(
            f"{name} must be integers, got {backend.dtype_name(value.dtype)}; for a mask pass "
            "what numpy.nonzero gives"
        )
    if backend.dtype_name(value.dtype) == "uint64" and value.size and value.max() > 2**63 - 1:
        raise IndexError(f"{name} is out of range: it holds {value.max()}")
    whole = xp.astype(value, xp.int64)
    if backend.is_torch(like):
        return (whole if backend.is_torch(value) else backend.from_numpy(whole, like)).to(
            like.device
        )
    return backend.to_numpy(whole)


def positions(name: str, index: Array, size: int) -> Array:
    """`index` with negative positions counted from the end."""
    xp = array_namespace(index)
    wrong = (index < -size) | (index >= size)
    if bool(xp.any(wrong)):
        raise IndexError(
            f"{name} must be from {-size} to {size - 1}, got {int(index[wrong].reshape(-1)[0])}"
        )
    return xp.where(index < 0, index + size, index)


def broadcast(parts: Sequence[Array]) -> tuple[list[Array], tuple[int, ...]]:
    """Index arrays of one shape, flattened, and that shape."""
    xp = array_namespace(*parts)
    try:
        same = xp.broadcast_arrays(*parts)
    except (ValueError, RuntimeError):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"the index arrays must broadcast together, got {shapes}") from None
    return [part.reshape(-1) for part in same], tuple(same[0].shape)
