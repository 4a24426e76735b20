"""Rows of activations times matrices, of which every row has its own: that of its expert.

Where rows lie sorted, those of one expert are multiplied at once. Otherwise every row is multiplied
by a copy of its matrix, which suits a few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Which of n matrices belongs to every row.

    Attributes
    ----------
    slots : Tensor of int64, shape (rows,)
        Number of the matrix; n for rows that have none and become zero.
    bounds : Tensor of int64, shape (n, 2), optional
        First row of every matrix and the one behind its last, where rows lie sorted.
    partial : bool
        Whether rows may have none.
    """

    slots: Tensor
    bounds: Tensor | None = None
    partial: bool = False

    @classmethod
    def sorted(cls, slots: Tensor, n: int, *, partial: bool = False) -> Routing:
        """Of rows that lie sorted by their matrices."""
        numbers = torch.arange(n, device=slots.device)
        sides = (torch.searchsorted(slots, numbers, right=right) for right in (False, True))
        return cls(slots, torch.stack([*sides], 1), partial)

    def repeated(self, times: int) -> Routing:
        """The same where so many rows come for each."""
        if times == 1:
            return self
        bounds = None if self.bounds is None else self.bounds * times
        return Routing(self.slots.repeat_interleave(times), bounds, self.partial)


def expert_product(x: Tensor, matrices: Tensor, routing: Routing) -> Tensor:
    """Every row times its matrix.

    Parameters
    ----------
    x : Tensor, shape (rows, a)
        Activations.
    matrices : Tensor, shape (n, a, b)
        In the dtype of `x`.
    routing : Routing
        Which matrix belongs to a row.

    Returns
    -------
    Tensor, shape (rows, b)
        Zero where a row has no matrix.
    """
    if routing.bounds is not None:
        product: Tensor = _grouped(x, matrices, routing.bounds)
        return product
    return torch.bmm(x.unsqueeze(1), _taken(matrices, routing)).squeeze(1)


def expert_scaling(x: Tensor, scales: Tensor, routing: Routing) -> Tensor:
    """Every row times its scales: ``x`` (rows, k, a) and `scales` (n, a)."""
    return x * _taken(scales, routing).unsqueeze(1)


def _taken(values: Tensor, routing: Routing) -> Tensor:
    """The entry of every row, zeros where it has none."""
    if not routing.partial:
        return values[routing.slots]
    known = routing.slots < len(values)
    found = values[routing.slots.clamp(max=len(values) - 1)]
    return found * known.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)


@torch.library.custom_op("tnlib_adapters::grouped_product", mutates_args=())
def _grouped(x: Tensor, matrices: Tensor, bounds: Tensor) -> Tensor:
    """Products of sorted rows, one for every matrix that has some."""
    y = x.new_zeros(len(x), matrices.shape[2])
    for k, (start, end) in enumerate(bounds.tolist()):
        if end > start:
            torch.mm(x[start:end], matrices[k], out=y[start:end])
    return y


@_grouped.register_fake
def _(x: Tensor, matrices: Tensor, bounds: Tensor) -> Tensor:
    return x.new_empty(len(x), matrices.shape[2])


@torch.library.custom_op("tnlib_adapters::grouped_outer_product", mutates_args=())
def _grouped_outer(x: Tensor, y: Tensor, bounds: Tensor) -> Tensor:
    """For every matrix the product of its rows, transposed, with those of another array."""
    found = x.new_zeros(len(bounds), x.shape[1], y.shape[1])
    for k, (start, end) in enumerate(bounds.tolist()):
        if end > start:
            torch.mm(x[start:end].T, y[start:end], out=found[k])
    return found


@_grouped_outer.register_fake
def _(x: Tensor, y: Tensor, bounds: Tensor) -> Tensor:
    return x.new_empty(len(bounds), x.shape[1], y.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, matrices, bounds = inputs
    # What no gradient needs is not kept.
    kept = x if ctx.needs_input_grad[1] else None
    ctx.save_for_backward(kept, matrices if ctx.needs_input_grad[0] else None, bounds)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, matrices, bounds = ctx.saved_tensors
    grad = grad.contiguous()
    of_x = None if matrices is None else _grouped(grad, matrices.mT.contiguous(), bounds)
    of_matrices = None if x is None else _grouped_outer(x, grad, bounds)
    return of_x, of_matrices, None


def _save_outer(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_outer(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, y, bounds = ctx.saved_tensors
    grad = grad.contiguous()
    return _grouped(y, grad.mT.contiguous(), bounds), _grouped(x, grad, bounds), None


_grouped.register_autograd(_backward, setup_context=_save)
_grouped_outer.register_autograd(_backward_outer, setup_context=_save_outer)
