"""Neighbouring cores as one: their product over the bonds between them.

The product of a few cores can leave the range of the dtype where the whole train does not. Then
scale moves between the cores, as in the other products of :mod:`tnlib.trains.core_algebra`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.trains import core_algebra, scaled_cores

Mode = tuple[int, ...]


def merged(
    cores: Sequence[Array], modes: Sequence[Mode], counts: Sequence[int]
) -> tuple[list[Array], bool]:
    """Products of `counts` neighbours among (r, n, r) cores, and whether a gauge is still theirs.

    It is not where all share the scale, since the dtype cannot hold the products as they are.
    `modes` are the axes that every n stands for; each of a product is beside those of its own.

    Raises
    ------
    ValueError
        If the dtype cannot hold the train in so few cores.
    """
    if all(count == 1 for count in counts):
        return [_sorted(core, [mode]) for core, mode in zip(cores, modes, strict=True)], True
    out, wide = cores[0].dtype, core_algebra.widened(cores)
    ends = list(itertools.accumulate(counts))
    runs = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    products = _plain([wide[run] for run in runs])
    kept = products is not None and all(scaled_cores.fits(core, out) for core in products)
    if products is None or not kept:
        products = _evened([wide[run] for run in runs], out)
    pairs = zip(products, runs, strict=True)
    with backend.out_of_range_allowed():
        return [backend.astype(_sorted(core, modes[run]), out) for core, run in pairs], kept


def joined(left: Array, right: Array) -> Array:
    """Two (r, ..., r) cores as one, each mode of the left beside that of the right."""
    xp = array_namespace(left, right)
    product = xp.tensordot(left, right, axes=1)
    modes = [tuple(map(int, core.shape[1:-1])) for core in (left, right)]
    return _sorted(product.reshape(left.shape[0], -1, right.shape[-1]), modes)


def _plain(runs: Sequence[Sequence[Array]]) -> list[Array] | None:
    """The products as they are, or None where something would be lost, or might be."""
    if scaled_cores.is_moderate([core for run in runs for core in run]):
        return [_times(run[0].reshape(-1, run[0].shape[2]), run) for run in runs]
    products = []
    for run in runs:
        near, exponents = _stepped(scaled_cores.no_exponents(run[0].shape[0], run[0]), run)
        product = scaled_cores.times(near, exponents)
        if backend.is_traced(product) or not bool(
            (scaled_cores.times(product, -exponents) == near).all()
        ):
            return None
        products.append(product.reshape(run[0].shape[0], -1, product.shape[-1]))
    return products


def _evened(runs: Sequence[Sequence[Array]], out: Any) -> list[Array]:
    """The products with the scale of the train in equal parts."""
    exponents = scaled_cores.no_exponents(1, runs[0][0])
    products = []
    for run in runs:
        near, exponents = _stepped(exponents, run)
        products.append(near.reshape(run[0].shape[0], -1, near.shape[-1]))
    if not backend.is_traced(products[0]):
        size = sum(map(scaled_cores.exponent, products)) + int(exponents[0])
        low, high = backend.exponent_range(out)
        if not low <= size // len(products) < high and all(bool(p.any()) for p in products):
            raise ValueError(
                f"{backend.dtype_name(out)} cannot hold a train of size about 2^{size} in "
                f"{len(products)} cores; reshape normalized(), and keep lognorm()"
            )
    return scaled_cores.evened(products, exponents[0])


def _stepped(exponents: Array, run: Sequence[Array]) -> tuple[Array, Array]:
    """The product (r * n, s) of cores whose rows count 2^exponents, near 1, and its exponents."""
    xp, first = array_namespace(run[0]), run[0]
    product = xp.eye(first.shape[0], dtype=first.dtype, device=first.device)
    for core in run:
        product, exponents = scaled_cores.step(product, exponents, core)
    return product, exponents


def _times(product: Array, run: Sequence[Array]) -> Array:
    """The product (r, n, s) of moderate cores, of which the first is given as a matrix."""
    for core in run[1:]:
        product = (product @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    return product.reshape(run[0].shape[0], -1, product.shape[-1])


def _sorted(core: Array, modes: Sequence[Mode]) -> Array:
    """A core over the modes of its factors, (r, i_1, j_1, i_2, ..., r), as (r, i, j, r)."""
    axes, count = len(modes[0]), len(modes)
    sizes = [math.prod(mode[k] for mode in modes) for k in range(axes)]
    if axes > 1:
        apart = core.reshape(core.shape[0], *itertools.chain.from_iterable(modes), core.shape[-1])
        order = [1 + axes * k + axis for axis in range(axes) for k in range(count)]
        core = array_namespace(core).permute_dims(apart, (0, *order, axes * count + 1))
    return core.reshape(core.shape[0], *sizes, core.shape[-1])
