"""Networks of the two chain formats: operators and tensor trains of a matrix."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence

from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.initializers import Initializer, normal, zeros
from tnlib_adapters.networks.network import Network

Leg = tuple[str, int]


def mpo_network(
    rows: Sequence[int],
    columns: Sequence[int],
    ranks: Sequence[int],
    *,
    anchored: bool = False,
    residual: bool = False,
) -> Network:
    """A matrix product operator with cores ``core_0 ... core_{n-1}`` of shape (r, i, j, r).

    The cores start at random: core k of n is N(0, 1) d^(-1/2n) / sqrt(r_{k+1}) for d columns, so
    that the operator's entries have the variance 1 / d; without an anchor the last one is zero.
    """
    order = len(rows)
    share = math.prod(columns) ** (-0.5 / order)
    starts = [normal(share / math.sqrt(rank)) for rank in ranks[1:]]
    if not anchored:
        starts[-1] = zeros
    cores = tuple(
        Core(f"core_{k}", (f"bond_{k}", f"out_{k}", f"in_{k}", f"bond_{k + 1}"), starts[k])
        for k in range(order)
    )
    sizes = {f"bond_{k}": rank for k, rank in enumerate(ranks)}
    sizes |= {f"out_{k}": size for k, size in enumerate(rows)}
    sizes |= {f"in_{k}": size for k, size in enumerate(columns)}
    return Network(
        cores,
        sizes,
        out_legs=tuple(f"out_{k}" for k in range(order)),
        in_legs=tuple(f"in_{k}" for k in range(order)),
        anchored=anchored,
        residual=residual,
    )


def matrix_train(
    rows: Sequence[int], columns: Sequence[int], rank: int, *, scale: float = 1.0
) -> Network:
    """A tensor train over the modes of the rows and then of the columns, its first core zero.

    The other cores start as :func:`train_starts` says.

    Parameters
    ----------
    rows, columns : sequence of int
        Sizes of the modes; those of 1 are left out, but one per side.
    rank : int
        Rank of every bond, or what it can hold if that is less.
    scale : float
        Factor of the update.
    """
    rows, columns = ([m for m in modes if m > 1] or [1] for modes in (rows, columns))
    out_legs, in_legs = (
        tuple(f"{side}_{k}" for k in range(len(modes)))
        for side, modes in (("out", rows), ("in", columns))
    )
    ranks = clipped([*rows, *columns], rank)
    starts = train_starts(math.prod(rows) + math.prod(columns), ranks)
    cores = tuple(
        Core(
            f"core_{k}",
            (f"bond_{k}", leg, f"bond_{k + 1}"),
            starts[k] if k else zeros,
        )
        for k, leg in enumerate((*out_legs, *in_legs))
    )
    sizes = dict(zip((*out_legs, *in_legs), (*rows, *columns), strict=True))
    sizes |= {f"bond_{k}": bond for k, bond in enumerate(ranks)}
    return Network(cores, sizes, out_legs, in_legs, scale=scale)


def train_starts(widths: int, ranks: Sequence[int]) -> list[Initializer]:
    """Normal cores of a matrix of variance 1 / widths, for the sum of its input and output width.

    Core k of d is N(0, 1) widths^(-1/2d) / sqrt(r_{k+1}).
    """
    deviation = widths ** (-0.5 / (len(ranks) - 1))
    return [normal(deviation / math.sqrt(rank)) for rank in ranks[1:]]


def tt_layer(
    name: str,
    width: int,
    out: int,
    modes: Sequence[int],
    ranks: Sequence[int],
    ends: tuple[str, str] = ("in", "out"),
    cuts: Sequence[int] = (),
    *,
    last_zero: bool = False,
) -> Network:
    """A tensor train over the modes of the input width and then of the output width.

    A mode may belong to both: its core has a leg of each. The cores start as :func:`train_starts`
    says.

    Parameters
    ----------
    name : str
        Cores are ``<name>_0``, ``<name>_1`` and so on.
    width, out : int
        Input and output width, of product ``prod(modes)``.
    modes, ranks : sequence of int
        Sizes of the modes, and of the bonds with ones at both ends.
    ends : (str, str)
        Names of the legs on the input and the output side.
    cuts : sequence of int
        Further partial products at which a side called "mid" is cut.
    last_zero : bool
        Whether the last core starts at zero.

    Raises
    ------
    ValueError
        If the modes do not fit the widths, or their partial products do not divide one another.
    """
    products = partial_products(modes)
    if products[-1] != width * out:
        raise ValueError(
            f"shapes: the modes {tuple(modes)} of {name} have the product {products[-1]}, but "
            f"{width} x {out} = {width * out} is needed; give modes for this weight, or none"
        )
    if any(p > width and p % width for p in products):
        raise ValueError(
            f"shapes: no partial product of {tuple(modes)} may pass {width} without being a "
            "multiple of it; reorder the modes"
        )
    sides = [p for p in products if p <= width], [p // width for p in products if p > width]
    legs = [
        cut(end, size, side, cuts if end == "mid" else ())
        for end, size, side in zip(ends, (width, out), sides, strict=True)
    ]
    sizes = {leg: size for side in legs for leg, size in side}
    sizes |= {f"{name}_bond_{k}": rank for k, rank in enumerate(ranks)}
    waiting = list(sizes)[: len(legs[0]) + len(legs[1])]
    starts = train_starts(width + out, ranks)
    cores = []
    for k, mode in enumerate(modes):
        last = k == len(modes) - 1
        own: list[str] = []
        while waiting and (last or math.prod(map(sizes.__getitem__, own)) < mode):
            own.append(waiting.pop(0))
        legs_of_core = (f"{name}_bond_{k}", *own, f"{name}_bond_{k + 1}")
        cores.append(Core(f"{name}_{k}", legs_of_core, zeros if last and last_zero else starts[k]))
    open_legs = [tuple(leg for leg, _ in side) for side in legs]
    return Network(tuple(cores), sizes, out_legs=open_legs[1], in_legs=open_legs[0])


def middle_cuts(down: Sequence[int], width: int, up: Sequence[int], middle: int) -> list[int]:
    """Where two trains that meet in a middle width cut it."""
    first = [p // width for p in partial_products(down) if p > width and p % width == 0]
    return first + [p for p in partial_products(up) if p < middle]


def partial_products(modes: Sequence[int]) -> list[int]:
    """Products of the first, the first two, and so on to all modes."""
    return list(itertools.accumulate(modes, operator.mul))


def cut(name: str, width: int, *products: Iterable[int]) -> list[Leg]:
    """The legs of a width that is cut at all the given partial products.

    Raises
    ------
    ValueError
        If a partial product does not divide the next one.
    """
    cuts = sorted({1, width, *(p for some in products for p in some if 1 <= p <= width)})
    for small, large in itertools.pairwise(cuts):
        if large % small:
            raise ValueError(
                f"shapes cut a width of {width} at {small} and at {large}, and {small} does not "
                f"divide {large}; choose modes whose partial products divide one another"
            )
    pairs = itertools.pairwise(cuts)
    legs = [(f"{name}_{k}", large // small) for k, (small, large) in enumerate(pairs)]
    return legs or [(f"{name}_0", 1)]


def clipped(modes: Sequence[int], rank: int) -> list[int]:
    """Bond ranks of a train: `rank`, or what the bond can hold if that is less."""
    order = range(len(modes) + 1)
    return [min(rank, math.prod(modes[:k]), math.prod(modes[k:])) for k in order]


def nominal(modes: Sequence[int], rank: int) -> list[int]:
    """Bond ranks of a train: `rank` everywhere, also where the bond cannot hold it."""
    return [1, *[rank] * (len(modes) - 1), 1]
