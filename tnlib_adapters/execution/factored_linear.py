"""A linear layer plus an update that is a product of low-rank factors, as LoRA's is.

``y = x W^T + b + x F_1 F_2 ... F_m``, where the product with the base weight receives the update in
place, forward and backward: no array of the size of the activations is made for it. The
activations and the narrow intermediates x F_1, ... are saved; of half-precision activations no
wider copy is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def factored_linear(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor]
) -> Tensor:
    """``x weight^T + bias + x F_1 ... F_m``; without `weight`, the update alone.

    Parameters
    ----------
    x : Tensor, shape (..., in_features)
        Activations.
    weight : Tensor or None, shape (out_features, in_features)
        Frozen base weight, in the dtype of the factors; it gets no gradient.
    bias : Tensor or None, shape (out_features,)
        Added where there is a weight.
    factors : sequence of Tensor
        Matrices whose shapes chain from in_features to out_features.

    Returns
    -------
    Tensor, shape (..., out_features)
        In the dtype of the factors, or autocast's.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return factored_linear(x.to(dtype), weight, bias, [f.to(dtype) for f in factors])
    if traced() or not torch.is_grad_enabled():
        return _plain(x, weight, bias, factors)
    result: Tensor = _FactoredLinear.apply(x, weight, bias, *factors)  # type: ignore[no-untyped-call]
    return result


def _plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, factors: Sequence[Tensor]
) -> Tensor:
    reduced = x.to(factors[0].dtype)
    for factor in factors[:-1]:
        reduced = reduced @ factor
    if weight is None:
        return reduced @ factors[-1]
    y = functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return y + reduced @ factors[-1]
    _rows(y).addmm_(_rows(reduced), factors[-1])
    return y


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *factors: Tensor
    ) -> Tensor:
        reduced = [_rows(x).to(factors[0].dtype)]
        for factor in factors[:-1]:
            reduced.append(reduced[-1] @ factor)
        ctx.save_for_backward(x, weight, *reduced[1:], *factors)
        ctx.has_bias = bias is not None
        if weight is None:
            return (reduced[-1] @ factors[-1]).view(*x.shape[:-1], factors[-1].shape[-1])
        y = functional.linear(x, weight, bias)
        _rows(y).addmm_(reduced[-1], factors[-1])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *saved = ctx.saved_tensors
        count = (len(saved) + 1) // 2
        factors = saved[count - 1 :]
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _again(wanted, grad, x, weight, factors)
        reduced = [_rows(x), *saved[: count - 1]]
        flowing = _rows(grad)
        grads: list[Tensor | None] = [None] * count
        for k in reversed(range(count)):
            if wanted[3 + k]:
                grads[k] = reduced[k].mT.to(flowing.dtype) @ flowing
            if k:
                flowing = flowing @ factors[k].mT
        grad_x = None
        if wanted[0] and weight is not None:
            grad_x = (_rows(grad) @ weight).addmm_(flowing, factors[0].mT).view(x.shape)
        elif wanted[0]:
            grad_x = (flowing @ factors[0].mT).view(x.shape).to(x.dtype)
        grad_bias = _rows(grad).sum(0) if ctx.has_bias and wanted[2] else None
        return grad_x, None, grad_bias, *grads


def _again(
    wanted: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor | None, factors: list[Tensor]
) -> tuple[Any, ...]:
    """The gradients as functions that can be differentiated again."""
    bias = grad.new_zeros(grad.shape[-1]).requires_grad_() if wanted[2] else None
    y = _plain(x, weight, bias, factors)
    inputs = [x, weight, bias, *factors]
    ends = [v for v, want in zip(inputs, wanted, strict=True) if v is not None and want]
    found = iter(torch.autograd.grad(y, ends, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def traced() -> bool:
    """Whether a graph or a function transform is being made, which sees plain operations only."""
    transformed: bool = torch._C._are_functorch_transforms_active()
    return torch.compiler.is_compiling() or transformed


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])
