"""A linear layer whose weight is formed of cores in every pass instead of being kept.

``y = x (W + dW)^T + b`` as one matrix product. The backward pass needs the activations, the cores
and W, all of which exist anyway; the dense sum W + dW is formed again there and never saved, so
a step costs no memory beyond one layer's weight at a time. A weight in 4 bits is dequantised for
it, and the update is added to that memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tnlib_adapters.execution.base_weight import BaseWeight
from tnlib_adapters.execution.dense_forms import Form, Operands
from tnlib_adapters.execution.dense_update import DenseUpdate
from tnlib_adapters.execution.factored_linear import traced


def recomputed_linear(
    x: Tensor, base: BaseWeight | None, bias: Tensor | None, update: DenseUpdate
) -> Tensor:
    """``x (base + update)^T + bias`` in one product; without `base`, the update alone.

    Parameters
    ----------
    x : Tensor, shape (..., in_features)
        Activations.
    base : BaseWeight or None, shape (out_features, in_features)
        It gets no gradient. The sum has the dtype of the cores at least.
    bias : Tensor or None, shape (out_features,)
        Added to the product.
    update : DenseUpdate
        What is added to the base weight.

    Returns
    -------
    Tensor, shape (..., out_features)
        In the dtype of `x`, or autocast's.
    """
    device_type = x.device.type
    enabled = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if enabled else x.dtype
    if traced():
        total = update.dense() if base is None else base.plus(update.dense())
        return functional.linear(
            x.to(dtype), total.to(dtype), None if bias is None else bias.to(dtype)
        )
    with torch.autocast(device_type, enabled=False):
        # Tensors are arguments, whatever saves or traces a graph sees them; what else the weight is
        # made of is bound to how it is put together again.
        watched = () if base is None else base.watched
        result: Tensor = _RecomputedLinear.apply(  # type: ignore[no-untyped-call]
            x.to(dtype),
            bias,
            None if base is None else base.with_watched,
            update.form,
            update.scale,
            (len(update.values), len(update.anchor)),
            *update.values,
            *update.anchor,
            *watched,
        )
    return result


class _RecomputedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        with_watched: Callable[[Sequence[Tensor]], BaseWeight] | None,
        form: Form,
        scale: float,
        counts: tuple[int, int],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.with_watched, ctx.form, ctx.scale, ctx.counts = with_watched, form, scale, counts
        ctx.save_for_backward(x, *tensors)
        ctx.has_bias = bias is not None
        values, anchor, base = _parts(ctx, tensors)
        total = _total(form, scale, form.operands(values), anchor, base)
        return functional.linear(x, total.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return _RecomputedLinear._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        values, anchor, base = _parts(ctx, tensors)
        form, scale, count = ctx.form, ctx.scale, len(values)
        flat = grad.reshape(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad[6 : 6 + count]
        leaves = [v.detach().requires_grad_(w) for v, w in zip(values, wanted, strict=True)]
        with torch.enable_grad():
            operands = form.operands(leaves)
        known = tuple(operand.detach() for operand in operands)
        grad_x = None
        if ctx.needs_input_grad[0]:
            total = _total(form, scale, known, anchor, base)
            grad_x = grad @ total.to(grad.dtype)
            # The gradient of the weight may have its memory.
            del total
        grad_bias = flat.sum(0) if ctx.has_bias and ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * len(tensors)
        if any(wanted):
            grad_total = (flat.mT @ x.reshape(-1, x.shape[-1])).to(known[0].dtype)
            reached = form.gradients(grad_total, known, scale)
            moved = [(p, g) for p, g in zip(operands, reached, strict=True) if p.requires_grad]
            trained = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            ends, starts = zip(*moved, strict=True)
            found = iter(torch.autograd.grad(ends, trained, starts))
            grads[:count] = [next(found) if want else None for want in wanted]
        return grad_x, grad_bias, None, None, None, None, *grads


def _parts(
    ctx: Any, tensors: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor], BaseWeight | None]:
    """Values, anchor and base weight, of the tensors of a call."""
    first, second = ctx.counts[0], sum(ctx.counts)
    base = None if ctx.with_watched is None else ctx.with_watched(tensors[second:])
    return tensors[:first], tensors[first:second], base


def _total(
    form: Form,
    scale: float,
    operands: Operands,
    anchor: Sequence[Tensor],
    base: BaseWeight | None,
) -> Tensor:
    """The update, plus the base weight where there is one."""
    fixed = form.operands(anchor) if anchor else None
    if base is None:
        return form.update(operands, fixed, scale)
    weight, out = base.dense_and_out(operands[0].dtype)
    return form.added(operands, fixed, scale, weight, out)
