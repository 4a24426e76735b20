"""Random cores of prescribed ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tnlib import _array
from tnlib._array import RNG, Array


def cores(
    modes: Sequence[int], ranks: Sequence[int], rng: RNG, dtype: Any, like: Array
) -> tuple[Array, ...]:
    """Normal (r, n, r) cores whose product has entries of variance 1."""
    generator = _array.as_generator(rng)
    xp = _array.namespace(like)
    wanted = like.dtype if dtype is None else _array.resolve_dtype(xp, dtype)
    if not xp.isdtype(wanted, ("real floating", "complex floating")):
        wanted = _array.default_float(xp)
    sample = xp.empty(0, dtype=_array.double(xp, wanted), device=like.device)
    bonds = (1, *_attainable(modes, ranks), 1)
    made = []
    for mode, left, right in zip(modes, bonds[:-1], bonds[1:], strict=True):
        scale = (left * right) ** -0.25
        if _array.is_complex(wanted):
            scale *= 0.5**0.5
        values = _array.normal(generator, (left, mode, right), sample) * scale
        made.append(_array.astype(values, wanted))
    return tuple(made)


def _attainable(modes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Bond ranks lowered to what the modes on either side allow."""
    lowered = list(ranks)
    for k in range(len(lowered)):
        left = lowered[k - 1] if k else 1
        lowered[k] = min(lowered[k], left * modes[k])
    for k in range(len(lowered) - 1, -1, -1):
        right = lowered[k + 1] if k + 1 < len(lowered) else 1
        lowered[k] = min(lowered[k], right * modes[k + 1])
    return lowered
