"""How the dense update of a network is formed, and added to a weight, in few passes over it.

Where the cores can be cut into two halves such that the rows and the columns of the first come
first, the update is one matrix product L R whose entries (rows and columns of L, rows and columns
of R) only have to change the two groups in the middle. At float32's usual widths writing so many
numbers takes as long as the product, so the value at the initial cores is subtracted within
products, L R - L_0 R_0 = (L - L_0) R + L_0 (R - R_0), and the weight is added by the pass that also
moves the groups. Any other network is contracted as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from tnlib_adapters.ordered import Ordered, planned

Pieces = tuple[Tensor, ...]


class Form(Protocol):
    """How pieces become the update, and a gradient of the update gradients of the pieces."""

    def joined(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor | None = None
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`; without it differentiable."""

    def gradients(
        self, grad: Tensor, pieces: Pieces, scale: float, space: Tensor | None = None
    ) -> Pieces:
        """Gradients of the pieces for a gradient of the update; `space`, as large, is used up."""


@dataclass(frozen=True)
class Whole:
    """The update as one contraction."""

    contraction: Ordered
    shape: tuple[int, int]

    def pieces(self, values: Sequence[Tensor]) -> Pieces:
        """The update itself; differentiable."""
        return (self.contraction(values).reshape(self.shape),)

    def joined(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor | None = None
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`; differentiable."""
        update = pieces[0] if anchor is None else pieces[0] - anchor[0]
        update = update if scale == 1.0 else update * scale
        return update if weight is None else update + weight

    def gradients(
        self, grad: Tensor, pieces: Pieces, scale: float, space: Tensor | None = None
    ) -> Pieces:
        """Gradients of the pieces for a gradient of the update."""
        return (grad if scale == 1.0 else grad * scale,)


@dataclass(frozen=True)
class Halves:
    """The update as a product of two halves, of (rows, columns) each."""

    cut: int
    left: Ordered
    right: Ordered
    summed: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def pieces(self, values: Sequence[Tensor]) -> Pieces:
        """Both halves as matrices; differentiable."""
        left = self.left(values[: self.cut]).reshape(-1, self.summed)
        return left, self.right(values[self.cut :]).reshape(self.summed, -1)

    def joined(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor | None = None
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`; without it differentiable."""
        left, right = pieces
        if anchor is None:
            product = left @ right
        else:
            # L R - L_0 R_0 without cancellation: exactly zero for equal halves.
            product = ((left - anchor[0]) @ right).addmm_(anchor[0], right - anchor[1])
        entries = (self.rows[0], self.columns[0], self.rows[1], self.columns[1])
        moved = product.view(entries).transpose(1, 2)
        shape = (math.prod(self.rows), math.prod(self.columns))
        if weight is None:
            update = moved.reshape(shape)
            return update if scale == 1.0 else update * scale
        sized = weight.view(moved.shape)
        dtype = torch.promote_types(weight.dtype, product.dtype)
        total = torch.empty(moved.shape, dtype=dtype, device=product.device)
        return torch.add(sized, moved, alpha=scale, out=total).view(shape)

    def gradients(
        self, grad: Tensor, pieces: Pieces, scale: float, space: Tensor | None = None
    ) -> Pieces:
        """Gradients of the pieces for a gradient of the update; `space`, as large, is used up."""
        entries = (self.rows[0], self.rows[1], self.columns[0], self.columns[1])
        regrouped = grad.view(entries).transpose(1, 2)
        if space is None or not space.is_contiguous():
            space = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        moved = space.view(regrouped.shape).copy_(regrouped).view(len(pieces[0]), -1)
        found = (pieces[1] @ moved.mT).mT, pieces[0].mT @ moved
        return found if scale == 1.0 else (found[0] * scale, found[1] * scale)


Dense = Whole | Halves


@lru_cache(maxsize=4096)
def dense_form(
    terms: tuple[str, ...], rows: str, columns: str, sizes: tuple[tuple[str, int], ...]
) -> Dense:
    """The cheapest form for cores with these indices, and those of the update's rows and columns.

    Parameters
    ----------
    terms : tuple of str
        Indices of the cores.
    rows, columns : str
        Open indices.
    sizes : tuple of (str, int)
        Size of every index.
    """
    size = dict(sizes)
    found = [_halves(cut, terms, rows, columns, size) for cut in range(1, len(terms))]
    halves = [form for form in found if form is not None]
    if halves:
        return min(halves, key=_flops)
    whole = planned(f"{','.join(terms)}->{rows}{columns}", *_shapes(terms, size))
    return Whole(whole, (_volume(rows, size), _volume(columns, size)))


def _halves(
    cut: int, terms: Sequence[str], rows: str, columns: str, size: Mapping[str, int]
) -> Halves | None:
    """The two halves of a cut, or None if it leaves the order of rows or columns."""
    left, right = ({i for term in side for i in term} for side in (terms[:cut], terms[cut:]))
    summed = "".join(sorted(left & right))
    split = []
    for legs in (rows, columns):
        first = "".join(itertools.takewhile(lambda i: i in left, legs))
        split.append((first, legs[len(first) :]))
    (r0, r1), (c0, c1) = split
    if set(summed) & set(rows + columns) or set(r1 + c1) & left:
        return None
    return Halves(
        cut,
        planned(f"{','.join(terms[:cut])}->{r0}{c0}{summed}", *_shapes(terms[:cut], size)),
        planned(f"{','.join(terms[cut:])}->{summed}{r1}{c1}", *_shapes(terms[cut:], size)),
        _volume(summed, size),
        (_volume(r0, size), _volume(r1, size)),
        (_volume(c0, size), _volume(c1, size)),
    )


def _flops(form: Halves) -> int:
    entries = math.prod(form.rows) * math.prod(form.columns)
    return form.left.plan.flops + form.right.plan.flops + 2 * entries * form.summed


def _shapes(terms: Sequence[str], size: Mapping[str, int]) -> list[tuple[int, ...]]:
    return [tuple(size[i] for i in term) for term in terms]


def _volume(indices: str, size: Mapping[str, int]) -> int:
    return math.prod(size[i] for i in indices)
