"""A linear layer whose weight is rebuilt from cores instead of being kept.

``y = x (W + dW)^T + b`` as one matrix product. The backward pass needs the activations, the cores
and W, all of which exist anyway; the dense sum W + dW is formed again there and never stored, so
a step costs no memory beyond one layer's weight at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tnlib_adapters.core import Cores
from tnlib_adapters.network import Network
from tnlib_adapters.stacked import Stacked


def rebuilt_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    network: Network | Stacked,
    cores: Cores,
    anchor: Cores | None = None,
) -> Tensor:
    """``x (weight + delta)^T + bias`` in one product; without `weight`, the update alone.

    Parameters
    ----------
    x : Tensor, shape (..., in_features)
        Activations.
    weight : Tensor or None, shape (out_features, in_features)
        Frozen base weight: it gets no gradient.
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
    if torch.compiler.is_compiling():
        total = network.delta(cores, anchor)
        total = (total if weight is None else total + weight).to(dtype)
        return functional.linear(x.to(dtype), total, None if bias is None else bias.to(dtype))
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
        weight: Tensor | None,
        bias: Tensor | None,
        network: Network | Stacked,
        names: tuple[str, ...],
        *values: Tensor,
    ) -> Tensor:
        ctx.network, ctx.names = network, names
        ctx.save_for_backward(x, weight, *values)
        ctx.has_bias = bias is not None
        total = _total(network, names, values, weight).to(x.dtype)
        return functional.linear(x, total, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *values = ctx.saved_tensors
        network, names = ctx.network, ctx.names
        flat = grad.reshape(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad[5 : 5 + len(names)]
        leaves = [v.detach().requires_grad_(w) for v, w in zip(values, wanted, strict=False)]
        with torch.enable_grad():
            total = _total(network, names, [*leaves, *values[len(names) :]], weight)
        grad_x = grad @ total.detach().to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = flat.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        grads: list[Tensor | None] = [None] * len(values)
        if any(wanted):
            grad_total = flat.mT @ x.reshape(-1, x.shape[-1])
            trained = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(total, trained, grad_total.to(total.dtype)))
            grads[: len(names)] = [next(found) if want else None for want in wanted]
        return grad_x, None, grad_bias, None, None, *grads


def _total(
    network: Network | Stacked, names: tuple[str, ...], values: Any, weight: Tensor | None
) -> Tensor:
    """The update, plus the base weight where there is one."""
    cores = dict(zip(names, values[: len(names)], strict=True))
    rest = values[len(names) :]
    anchor = dict(zip(names, rest, strict=True)) if rest else None
    update = network.delta(cores, anchor)
    return update if weight is None else update + weight
