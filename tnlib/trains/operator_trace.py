"""Traces of an operator: each core with its two modes joined is a matrix, and these multiply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend, checks
from tnlib.arrays.backend import Array
from tnlib.linalg.scaled_products import Scaled, largest
from tnlib.trains.entry_products import known, product, scaled_product


def trace(cores: Sequence[Array]) -> Array:
    """The sum of the diagonal, without axes, in at least single precision."""
    xp = array_namespace(*cores)
    matrices = [_joined(k, core) for k, core in enumerate(cores)]
    value = product(matrices, known(matrices))[0]
    with backend.out_of_range_allowed():
        return backend.astype(value, backend.working_dtype(xp, cores[0].dtype))


def partial(cores: Sequence[Array], positions: frozenset[int]) -> tuple[Array, ...]:
    """(r, i, j, r) cores of the operator on what is left after tracing out `positions`.

    What is traced out is multiplied into the next core that is left, or at the end into the last.
    """
    kept = [k for k in range(len(cores)) if k not in positions]
    parts = []
    begin = 0
    for k in kept:
        run = [_joined(m, cores[m]) for m in range(begin, k)]
        parts.append(scaled_product([*run, _wide(cores[k]).reshape(1, cores[k].shape[0], -1)]))
        begin = k + 1
    if begin < len(cores):
        last = parts[-1]
        run = [_joined(m, cores[m]) for m in range(begin, len(cores))]
        bond = cores[kept[-1]].shape[3]
        flat = [array.reshape(1, -1, bond) for array in (last.values, last.powers)]
        parts[-1] = Scaled(*flat) @ scaled_product(run)
    return _spread(parts, [cores[k] for k in kept])


def _spread(parts: Sequence[Scaled], like: Sequence[Array]) -> tuple[Array, ...]:
    """Cores whose largest entries have one exponent, with bonds that fit."""
    tops = [largest(part.values, part.powers, (0, 1, 2)) for part in parts]
    total = sum(tops)
    share = total // len(parts)
    made = []
    left = 1
    for k, (part, top, core) in enumerate(zip(parts, tops, like, strict=True)):
        power = total - share * (len(parts) - 1) if k == 0 else share
        values = Scaled(part.values, part.powers + (power - top)).plain()
        values = values.reshape(left, *core.shape[1:3], -1)
        left = values.shape[3]
        with backend.out_of_range_allowed():
            made.append(backend.astype(values, core.dtype))
    return tuple(made)


def positions(value: Any, order: int) -> frozenset[int]:
    """`value` as the positions of some of `order` cores."""
    single = not isinstance(value, Sequence | np.ndarray) or isinstance(value, str)
    found = [_position(part, order) for part in ([value] if single else value)]
    if len(set(found)) < len(found):
        raise ValueError(f"every position may be given once, got {value!r}")
    return frozenset(found)


def _position(value: Any, order: int) -> int:
    try:
        return checks.index("every position", value, order)
    except ValueError as error:
        raise IndexError(str(error)) from None


def _joined(k: int, core: Array) -> Array:
    """The matrix (1, r, r) of a core with equal modes, summed over them."""
    xp = array_namespace(core)
    if core.shape[1] != core.shape[2]:
        raise ValueError(
            f"a trace needs square modes, core {k} has the row mode {core.shape[1]} and the "
            f"column mode {core.shape[2]}"
        )
    diagonal = xp.linalg.diagonal(xp.permute_dims(_wide(core), (0, 3, 1, 2)))
    return xp.sum(diagonal, axis=-1)[None]


def _wide(core: Array) -> Array:
    return backend.astype(core, backend.double(array_namespace(core), core.dtype))
