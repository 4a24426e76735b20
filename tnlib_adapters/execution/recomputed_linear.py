"""A linear layer whose weight is rebuilt from cores instead of being kept.

``y = x (W + dW)^T + b`` as one matrix product. The backward pass needs the activations, the cores
and W, all of which exist anyway; the dense sum W + dW is formed again there and never stored, so
a step costs no memory beyond one layer's weight at a time. A weight in 4 bits is dequantised for
it, and the update is added to that memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tnlib_adapters.execution.dense_update import Form, Pieces
from tnlib_adapters.execution.factored_linear import traced

Cores = Mapping[str, Tensor]


class Fixed(Protocol):
    """A frozen weight that is not dense, and can be made so."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out_features, in_features), in memory that is the caller's own."""


class Rebuildable(Protocol):
    """What can be rebuilt: a network, or networks stacked."""

    @property
    def scale(self) -> float:
        """Factor of the update."""

    @property
    def dense(self) -> Form:
        """How the parts become the update."""

    def pieces(self, cores: Cores) -> Pieces:
        """The parts of which the update is formed; differentiable."""

    def delta(self, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """The dense update; differentiable."""


def rebuilt_linear(
    x: Tensor,
    weight: Tensor | Fixed | None,
    bias: Tensor | None,
    network: Rebuildable,
    cores: Cores,
    anchor: Cores | None = None,
) -> Tensor:
    """``x (weight + delta)^T + bias`` in one product; without `weight`, the update alone.

    Parameters
    ----------
    x : Tensor, shape (..., in_features)
        Activations.
    weight : Tensor, Fixed or None, shape (out_features, in_features)
        Frozen base weight: it gets no gradient. The sum has the dtype of the cores at least.
    bias : Tensor or None, shape (out_features,)
        Added to the product.
    network, cores, anchor
        The update, see :meth:`Network.delta`.

    Returns
    -------
    Tensor, shape (..., out_features)
        In the dtype of `x`, or autocast's.
    """
    names = tuple(cores)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if traced():
        total = network.delta(cores, anchor)
        if weight is not None:
            dense = weight if isinstance(weight, Tensor) else weight.dequantize(total.dtype)
            total = total + dense
        bias = None if bias is None else bias.to(dtype)
        return functional.linear(x.to(dtype), total.to(dtype), bias)
    with torch.autocast(kind, enabled=False):
        moving = [cores[name] for name in names]
        fixed = [] if anchor is None else [anchor[name] for name in names]
        result: Tensor = _RebuiltLinear.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), weight, bias, network, names, *moving, *fixed
        )
    return result


class _RebuiltLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | Fixed | None,
        bias: Tensor | None,
        network: Rebuildable,
        names: tuple[str, ...],
        *values: Tensor,
    ) -> Tensor:
        ctx.network, ctx.names = network, names
        # What is not dense is frozen, and reaches the backward pass as it is.
        ctx.packed = None if isinstance(weight, Tensor) else weight
        ctx.save_for_backward(x, weight if isinstance(weight, Tensor) else None, *values)
        ctx.has_bias = bias is not None
        pieces = network.pieces(dict(zip(names, values[: len(names)], strict=True)))
        total = _total(network, pieces, names, values[len(names) :], weight).to(x.dtype)
        return functional.linear(x, total, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return _RebuiltLinear._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *values = ctx.saved_tensors
        weight = ctx.packed if weight is None else weight
        network, names = ctx.network, ctx.names
        flat = grad.reshape(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad[5 : 5 + len(names)]
        leaves = [v.detach().requires_grad_(w) for v, w in zip(values, wanted, strict=False)]
        with torch.enable_grad():
            pieces = network.pieces(dict(zip(names, leaves, strict=True)))
        known = tuple(piece.detach() for piece in pieces)
        grad_x = None
        if ctx.needs_input_grad[0]:
            total = _total(network, known, names, values[len(names) :], weight)
            grad_x = grad @ total.to(grad.dtype)
            # The gradient of the weight may have its memory.
            del total
        grad_bias = flat.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        grads: list[Tensor | None] = [None] * len(values)
        if any(wanted):
            grad_total = (flat.mT @ x.reshape(-1, x.shape[-1])).to(known[0].dtype)
            from_pieces = network.dense.gradients(grad_total, known, network.scale)
            moved = [(p, g) for p, g in zip(pieces, from_pieces, strict=True) if p.requires_grad]
            trained = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            ends, starts = zip(*moved, strict=True)
            found = iter(torch.autograd.grad(ends, trained, starts))
            grads[: len(names)] = [next(found) if want else None for want in wanted]
        return grad_x, None, grad_bias, None, None, *grads


def _total(
    network: Rebuildable,
    pieces: Pieces,
    names: tuple[str, ...],
    anchor: Sequence[Tensor],
    weight: Tensor | Fixed | None,
) -> Tensor:
    """The update, plus the base weight where there is one."""
    fixed = network.pieces(dict(zip(names, anchor, strict=True))) if anchor else None
    dense, scale, dtype = network.dense, network.scale, pieces[0].dtype
    if weight is None:
        return dense.update(pieces, fixed, scale)
    if isinstance(weight, Tensor):
        dtype = torch.promote_types(weight.dtype, dtype)
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    else:
        weight = out = weight.dequantize(dtype)
    return dense.added(pieces, fixed, scale, weight, out)
