"""Products with a weight in 4 bits, which is dense for as long as each takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnlib_adapters.execution.factored_linear import traced
from tnlib_adapters.fourbit.packed import PackedWeight


def computing_dtype(layer: nn.Module, dtype: torch.dtype, device_type: str) -> torch.dtype:
    """In which dtype a layer multiplies activations of `dtype`: its own, autocast's or theirs."""
    chosen: torch.dtype | None = getattr(layer, "compute_dtype", None)
    if chosen is not None:
        return chosen
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else dtype


def check_activations(x: Tensor) -> None:
    """Raise TypeError unless activations are floating point."""
    if not x.is_floating_point():
        raise TypeError(f"activations must be floating point, got {x.dtype}")


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``x W^T + bias`` in the dtype of ``x``; differentiable in ``x`` and bias."""
    bias = None if bias is None else bias.to(x.dtype)
    if traced():
        return functional.linear(x, weight.dequantize(x.dtype), bias)
    with torch.autocast(x.device.type, enabled=False):
        if x.is_cuda and weight.backend == "bitsandbytes" and not torch.is_grad_enabled():
            return fused_product(x, weight, bias)
        result: Tensor = _PackedLinear.apply(x, bias, weight)  # type: ignore[no-untyped-call]
    return result


def fused_product(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """The product by bitsandbytes' kernel, which reads 4 bits per weight where it can."""
    operators: Any = torch.ops.bitsandbytes
    result: Tensor = operators.gemm_4bit.default(
        x,
        weight.packed.view(torch.uint8).view(-1, 1),
        weight.shape,
        weight.scales(),
        weight.format.blocksize,
        weight.format.quant_type,
        bias=bias,
    )
    return result


class _PackedLinear(torch.autograd.Function):
    """Saves the bytes only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.weight.dequantize(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_bias, None
