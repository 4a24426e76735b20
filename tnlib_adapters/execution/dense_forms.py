"""Forms in which cores become a dense update, and are added to a weight, in few passes over it.

Where the cores can be cut in two such that the rows and the columns of the first factor come first,
the update is one matrix product L R whose entries (rows and columns of L, rows and columns of R)
only have to change the two groups in the middle. At float32's usual widths writing so many numbers
takes as long as the product, so the value at the initial cores is subtracted within products,
L R - L_0 R_0 = (L - L_0) R + L_0 (R - R_0), and the weight is added by the pass that also moves the
groups, slice by slice in memory of a cache's size. Any other network is contracted as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tnlib_adapters.execution.planned_einsum import PlannedEinsum

Operands = tuple[Tensor, ...]
# Entries of an update that are formed at a time: 1 MiB of float32, about a core's cache.
_CACHED = 1 << 18


class Form(Protocol):
    """How operands become the update, and a gradient of the update gradients of the operands."""

    def operands(self, values: Sequence[Tensor]) -> Operands:
        """The matrices of which the update is formed, made of the cores; differentiable."""

    def update(self, operands: Operands, anchor: Operands | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""

    def added(
        self, operands: Operands, anchor: Operands | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""

    def gradients(self, grad: Tensor, operands: Operands, scale: float) -> Operands:
        """Gradients of the operands for a gradient of the update."""


@dataclass(frozen=True)
class Full:
    """The update as one contraction."""

    contraction: PlannedEinsum
    shape: tuple[int, int]

    def operands(self, values: Sequence[Tensor]) -> Operands:
        """The update itself; differentiable."""
        return (self.contraction(values).reshape(self.shape),)

    def update(self, operands: Operands, anchor: Operands | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""
        update = operands[0] if anchor is None else operands[0] - anchor[0]
        return update if scale == 1.0 else update * scale

    def added(
        self, operands: Operands, anchor: Operands | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""
        return torch.add(weight, self.update(operands, anchor, scale), out=out)

    def gradients(self, grad: Tensor, operands: Operands, scale: float) -> Operands:
        """Gradients of the operands for a gradient of the update."""
        return (grad if scale == 1.0 else grad * scale,)


@dataclass(frozen=True)
class TwoFactor:
    """The update as a product of two factors, of (rows, columns) each."""

    cut: int
    left: PlannedEinsum
    right: PlannedEinsum
    summed: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def operands(self, values: Sequence[Tensor]) -> Operands:
        """Both factors as matrices; differentiable."""
        left = self.left(values[: self.cut]).reshape(-1, self.summed)
        return left, self.right(values[self.cut :]).reshape(self.summed, -1)

    def update(self, operands: Operands, anchor: Operands | None, scale: float) -> Tensor:
        """The update minus the anchor's, scaled; differentiable."""
        left, right = operands
        if anchor is None:
            product = left @ right
        else:
            # L R - L_0 R_0 without cancellation: exactly zero for equal factors.
            product = ((left - anchor[0]) @ right).addmm_(anchor[0], right - anchor[1])
        entries = (self.rows[0], self.columns[0], self.rows[1], self.columns[1])
        shape = (math.prod(self.rows), math.prod(self.columns))
        update = product.view(entries).transpose(1, 2).reshape(shape)
        return update if scale == 1.0 else update * scale

    def added(
        self, operands: Operands, anchor: Operands | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """The update minus the anchor's, scaled, plus `weight`, in `out`, which may be `weight`."""
        left, right = operands
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

    def gradients(self, grad: Tensor, operands: Operands, scale: float) -> Operands:
        """Gradients of the operands for a gradient of the update."""
        left, right = operands
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


@dataclass(frozen=True)
class Rows:
    """Updates of parts as the rows of one; see :func:`interleaved`.

    Attributes
    ----------
    parts : tuple of (Form, int, float)
        How every part is formed, of how many values, and the factor of its update.
    groups : int
        How often the parts take turns.
    """

    parts: tuple[tuple[Form, int, float], ...]
    groups: int

    def operands(self, values: Sequence[Tensor]) -> Operands:
        """The updates of the parts; differentiable."""
        counts = [count for _, count, _ in self.parts]
        ends = itertools.accumulate(counts)
        return tuple(
            form.update(form.operands(values[end - count : end]), None, scale)
            for (form, count, scale), end in zip(self.parts, ends, strict=True)
        )

    def update(self, operands: Operands, anchor: Operands | None, scale: float) -> Tensor:
        """All rows; there is no anchor, and the parts are scaled."""
        return interleaved([operand.mT for operand in operands], self.groups).mT

    def added(
        self, operands: Operands, anchor: Operands | None, scale: float, weight: Tensor, out: Tensor
    ) -> Tensor:
        """All rows plus `weight`, in `out`, which may be `weight`."""
        return torch.add(weight, self.update(operands, anchor, scale), out=out)

    def gradients(self, grad: Tensor, operands: Operands, scale: float) -> Operands:
        """Gradients of the parts for a gradient of the whole."""
        runs = grad.reshape(self.groups, -1, grad.shape[-1])
        lengths = [len(operand) // self.groups for operand in operands]
        return tuple(part.flatten(0, 1) for part in torch.split(runs, lengths, 1))


def interleaved(parts: Sequence[Tensor], groups: int) -> Tensor:
    """Parts joined along the last axis, each cut into `groups` runs that take turns."""
    runs = [part.reshape(*part.shape[:-1], groups, -1) for part in parts]
    return torch.cat(runs, -1).flatten(-2)
