"""Reshaping a train: neighbouring modes are merged, and modes are split.

Merging is a product of cores. A mode is split as TT-SVD splits an array: the train is brought to
the gauge with its center at the left, and one new mode after another is split off by a truncated
SVD. What the splits discard is orthogonal, so the squares of the errors add up.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from array_api_compat import array_namespace

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common.keywords import keywords_named
from tnlib.common.type_aliases import RNG
from tnlib.linalg.preparation import allowance, binds, budget, within
from tnlib.result import ErrorKind
from tnlib.trains import merging, regrouping
from tnlib.trains.chain import Chain
from tnlib.trains.mpo import MPO

C = TypeVar("C", bound="Chain[Any]")
Mode = tuple[int, ...]


@own_arithmetic()
@keywords_named
def tt_reshape(
    tt: C,
    shape: Any,
    ranks: int | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    rng: RNG = None,
) -> C:
    """Give a tensor train, or the rows and columns of an operator, other modes.

    The entries keep their (C) order, as in :func:`numpy.reshape`. Where each new mode is made of
    whole neighbouring ones, and neither `ranks` nor `eps` is given, cores are multiplied and
    nothing else: exact but for rounding, and differentiable. Where the dtype cannot hold the
    products as they are, all cores share the scale and ``center`` is None. Elsewhere modes are
    split by truncated SVDs, without `ranks` and `eps` of rounding only. Modes that share no
    factors, as in (4, 9) to (9, 4), are merged first. What cancels to rounding becomes the zero
    train, as in :func:`tt_round`, where modes are split.

    Parameters
    ----------
    tt : TT or MPO
        Never modified.
    shape : sequence of int, or for an MPO a pair of them
        New modes, with the product of the old ones; for an operator (row_dims, col_dims), equally
        many. :func:`quantized_dims` gives those of a quantised train.
    ranks : int or sequence of int, optional
        Largest bond ranks of the result.
    eps : float, optional
        Relative Frobenius distance from `tt` that the whole result is guaranteed to meet. With
        `ranks` as well, the ranks win where both cannot be had.
    rng : None, int, numpy.random.Generator or torch.Generator, optional
        Randomness of the Krylov kernel; None is the fixed seed 0.

    Returns
    -------
    TT or MPO
        Of the type of `tt`. After splits, ``error`` is the exact relative distance from `tt`;
        after merging alone it is that of `tt`, inherited.

    Raises
    ------
    TypeError
        If `tt` is not a TT or MPO, or an argument has the wrong type.
    ValueError
        If the product of the modes changes, ranks or eps are out of range, eps is below what the
        dtype resolves, or the dtype cannot hold the train in so few cores; where modes are split
        also if the cores hold nan or inf or are part of an autograd graph.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import quantized_dims, tt_svd
    >>> train = tt_svd(np.exp(np.arange(64.0) / 64).reshape(8, 8), eps=1e-10)
    >>> quantized = tt_reshape(train, *quantized_dims(64), eps=1e-9)
    >>> quantized.shape, quantized.ranks
    ((2, 2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1, 1))
    >>> tt_reshape(quantized, (4, 16)).shape
    (4, 16)
    """
    if not isinstance(tt, Chain):
        raise TypeError(f"tt_reshape takes a TT or an MPO, got {type(tt).__name__}")
    old, new = regrouping.modes_of(tt), _new_modes(tt, shape)
    order = len(new)
    limits, tolerance = checks.ranks(ranks, order), checks.eps(eps)
    generator = backend.as_generator(rng)
    groups = _groups(old, new)
    if groups is not None and limits is None and tolerance is None:
        return _merged(tt, groups)
    begin = regrouping.begun(tt._merged())
    share = budget(tolerance, order, begin.prepared)
    shaped = [core.reshape(core.shape[0], *m, -1) for core, m in zip(begin.cores, old, strict=True)]
    bonds = limits or (None,) * (order - 1)

    def split(share: float | None) -> tuple[list[Array], list[float], tuple[str, ...]]:
        return _split(shaped, new, bonds, share, begin.total, generator)

    cores, discarded, kernels = within(split, share, begin.total)
    return regrouping.finished(
        tt,
        new,
        begin,
        cores,
        order - 1,
        discarded,
        kernels,
        lost=math.sqrt(math.fsum(discarded)),
        kind="exact",
        eps=tolerance,
        binding=binds(limits, [core.shape[2] for core in cores]),
    )


def _new_modes(tt: Chain[Any], shape: Any) -> list[Mode]:
    """`shape` as the modes of every new core, with the product of those of `tt`."""
    if not isinstance(tt, MPO):
        return [(size,) for size in _fitting("shape", shape, math.prod(tt.shape))]
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) != 2:
        raise TypeError(f"for an MPO shape must be a pair (row_dims, col_dims), got {shape!r}")
    rows = _fitting("row_dims", shape[0], tt.shape[0])
    columns = _fitting("col_dims", shape[1], tt.shape[1])
    checks.pairs(rows, columns)
    return list(zip(rows, columns, strict=True))


def _fitting(name: str, value: Any, size: int) -> Mode:
    sizes = checks.sizes(name, value)
    if math.prod(sizes) != size:
        raise ValueError(
            f"{name}={sizes} has product {math.prod(sizes)}, expected {size}: reshaping keeps the "
            "number of entries"
        )
    return sizes


def _groups(old: Sequence[Mode], new: Sequence[Mode]) -> list[int] | None:
    """How many old cores make up each new one, or None if one must be split."""
    counts, begin = [], 0
    for mode in new:
        end, product = begin + 1, old[begin] if begin < len(old) else ()
        while end < len(old) and product != mode:
            product = tuple(a * b for a, b in zip(product, old[end], strict=True))
            end += 1
        if product != mode:
            return None
        counts.append(end - begin)
        begin = end
    # Only modes of size 1 can be left.
    counts[-1] += len(old) - begin
    return counts


def _merged(tt: C, counts: Sequence[int]) -> C:
    """A chain whose cores are products of `counts` neighbouring ones."""
    cores, kept = merging.merged(tt._merged(), regrouping.modes_of(tt), counts)
    center = None
    if kept and tt.center is not None:
        center = bisect.bisect(list(itertools.accumulate(counts)), tt.center)
    kind: ErrorKind = "none" if tt.error is None else "inherited"
    return type(tt)(tuple(cores), error=tt.error, error_kind=kind, center=center, info=tt.info)


def _split(
    cores: Sequence[Array],
    new: Sequence[Mode],
    limits: Sequence[int | None],
    share: float | None,
    total: float,
    generator: Any,
) -> tuple[list[Array], list[float], tuple[str, ...]]:
    """Merged cores of the new modes, discarded energies and kernels; the first core is the center.

    A block holds the center and all that is left of the old cores already merged.
    """
    waiting = iter(cores)
    block = next(waiting)
    done: list[Array] = []
    discarded: list[float] = []
    kernels: list[str] = []
    for k, mode in enumerate(new[:-1]):
        block = _extended(block, waiting, mode)
        matrix, rest = _unfolded(block, mode)
        allowed = allowance(share, total, discarded, len(new) - 1 - k)
        found = regrouping.basis(matrix, limits[k], allowed, generator)
        done.append(found.vectors.reshape(block.shape[0], math.prod(mode), -1))
        block = found.rest.reshape(-1, *rest, block.shape[-1])
        discarded.append(found.discarded)
        kernels.append(found.kernel)
    for core in waiting:
        block = merging.joined(block, core)
    done.append(block.reshape(block.shape[0], -1, 1))
    return done, discarded, tuple(kernels)


def _extended(block: Array, waiting: Iterator[Array], mode: Mode) -> Array:
    """The block with as many more cores as it takes to split `mode` off."""
    while any(size % part for size, part in zip(block.shape[1:-1], mode, strict=True)):
        block = merging.joined(block, next(waiting))
    return block


def _unfolded(block: Array, mode: Mode) -> tuple[Array, Mode]:
    """The matrix whose rows are the left bond and `mode`, and the modes that remain."""
    xp = array_namespace(block)
    axes = len(mode)
    rest = tuple(size // part for size, part in zip(block.shape[1:-1], mode, strict=True))
    pairs = [size for pair in zip(mode, rest, strict=True) for size in pair]
    split = block.reshape(block.shape[0], *pairs, block.shape[-1])
    first = range(1, 2 * axes, 2)
    order = (0, *first, *(axis + 1 for axis in first), 2 * axes + 1)
    moved = xp.permute_dims(split, order)
    return moved.reshape(block.shape[0] * math.prod(mode), -1), rest
