"""How the dense update of a network is formed, and added to a weight, in few passes over it.

Where the cores can be cut into two halves such that the rows and the columns of the first come
first, the update is one matrix product L R whose entries (rows and columns of L, rows and columns
of R) only have to change the two groups in the middle. At float32's usual widths writing so many
numbers takes as long as the product, so the value at the initial cores is subtracted within
products, L R - L_0 R_0 = (L - L_0) R + L_0 (R - R_0), and the weight is added by the pass that also
moves the groups, slice by slice in memory of a cache's size. Any other network is contracted as a
whole.
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

from tnlib_adapters.execution.planned_einsum import Ordered, planned

Pieces = tuple[Tensor, ...]
# Entries of an update that are formed at a time: 1 MiB of float32, about a core's cache.
_CACHED = 1 << 18


class Form(Protocol):
    """How pieces become the update, and a gradient of the update gradients of the pieces."""

    def update(self, pieces: Pieces, anchor: Pieces | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""

    def added(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""

    def gradients(self, grad: Tensor, pieces: Pieces, scale: float) -> Pieces:
        """Gradients of the pieces for a gradient of the update."""


@dataclass(frozen=True)
class Whole:
    """The update as one contraction."""

    contraction: Ordered
    shape: tuple[int, int]

    def pieces(self, values: Sequence[Tensor]) -> Pieces:
        """The update itself; differentiable."""
        return (self.contraction(values).reshape(self.shape),)

    def update(self, pieces: Pieces, anchor: Pieces | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""
        update = pieces[0] if anchor is None else pieces[0] - anchor[0]
        return update if scale == 1.0 else update * scale

    def added(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""
        return torch.add(weight, self.update(pieces, anchor, scale), out=out)

    def gradients(self, grad: Tensor, pieces: Pieces, scale: float) -> Pieces:
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

    def update(self, pieces: Pieces, anchor: Pieces | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""
        left, right = pieces
        if anchor is None:
            product = left @ right
        else:
            # L R - L_0 R_0 without cancellation: exactly zero for equal halves.
            product = ((left - anchor[0]) @ right).addmm_(anchor[0], right - anchor[1])
        entries = (self.rows[0], self.columns[0], self.rows[1], self.columns[1])
        shape = (math.prod(self.rows), math.prod(self.columns))
        update = product.view(entries).transpose(1, 2).reshape(shape)
        return update if scale == 1.0 else update * scale

    def added(
        self, pieces: Pieces, anchor: Pieces | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""
        left, right = pieces
        if anchor is not None:
            before, moved = anchor[0], right - anchor[1]
            left = left - before
        entries = (*self.rows, *self.columns)
        source, target = weight.view(entries), out.view(entries)
        space = self._space(left)
        for first, last in self._slices():
            part = slice(first * self.columns[0], last * self.columns[0])
            product = torch.mm(left[part], right, out=space[: part.stop - part.start])
            if anchor is not None:
                product.addmm_(before[part], moved)
            torch.add(
                source[first:last],
                self._grouped(product, last - first),
                alpha=scale,
                out=target[first:last],
            )
        return out

    def gradients(self, grad: Tensor, pieces: Pieces, scale: float) -> Pieces:
        """Gradients of the pieces for a gradient of the update."""
        left, right = pieces
        of_left, of_right = torch.empty_like(left), torch.zeros_like(right)
        regrouped = grad.view(*self.rows, *self.columns)
        space = self._space(left)
        for first, last in self._slices():
            part = slice(first * self.columns[0], last * self.columns[0])
            moved = space[: part.stop - part.start]
            self._grouped(moved, last - first).copy_(regrouped[first:last])
            torch.mm(moved, right.mT, out=of_left[part])
            of_right.addmm_(left[part].mT, moved)
        return (of_left, of_right) if scale == 1.0 else (of_left * scale, of_right * scale)

    def _slices(self) -> list[tuple[int, int]]:
        """Ranges of the first row group, so that a slice of the product stays in the cache."""
        row = self.columns[0] * self.rows[1] * self.columns[1]
        step = max(1, _CACHED // row)
        return [(k, min(k + step, self.rows[0])) for k in range(0, self.rows[0], step)]

    def _space(self, like: Tensor) -> Tensor:
        """Memory for the product of a slice, of which the last may be smaller."""
        first, last = self._slices()[0]
        rows, columns = (last - first) * self.columns[0], self.rows[1] * self.columns[1]
        return torch.empty(rows, columns, dtype=like.dtype, device=like.device)

    def _grouped(self, product: Tensor, count: int) -> Tensor:
        """A view of a slice of the product with rows and columns of the update together."""
        entries = (count, self.columns[0], self.rows[1], self.columns[1])
        return product.view(entries).transpose(1, 2)


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
