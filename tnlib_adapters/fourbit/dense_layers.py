"""Dense layers in the place of quantised ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnlib_adapters.fourbit.bitsandbytes import made_from_conv1d
from tnlib_adapters.fourbit.layer import QuantizedLinear


class DenseLinear(nn.Linear):
    """A linear layer that computes in its weight's dtype whatever the activations have.

    What a quantised layer becomes when an update is merged into it: quantised layers take
    activations of any dtype, and so does this.

    Parameters
    ----------
    weight : Tensor, shape (out_features, in_features)
        Not copied.
    bias : Tensor or None, shape (out_features,)
        Cast to the weight's dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = _frozen(weight)
        self.bias = None if bias is None else _frozen(bias.to(weight.dtype))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape (..., in_features), in its dtype."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class DenseConv1D(nn.Module):
    """The same for a layer that was a ``Conv1D`` of transformers: its weight is (in, out)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.nf, self.nx = weight.shape
        self.weight = _frozen(weight.mT.contiguous())
        self.bias = _frozen(bias.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape (..., nx), in its dtype."""
        y = functional.linear(x.to(self.weight.dtype), self.weight.mT, self.bias)
        return y.to(x.dtype)


def dense_layer(base: nn.Module, weight: Tensor) -> nn.Module:
    """A layer with a dense `weight` (out_features, in_features) in the place of `base`."""
    bias: Any = base.bias
    return DenseConv1D(weight, bias) if was_conv1d(base) else DenseLinear(weight, bias)


def plain_layer(base: nn.Module, weight: Tensor) -> nn.Module:
    """The same as a plain layer of torch or transformers, for activations of the weight's dtype."""
    bias: Any = base.bias
    rows, columns = weight.shape
    if was_conv1d(base):
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            layer: nn.Module = Conv1D(rows, columns)  # type: ignore[no-untyped-call]
        weight = weight.mT.contiguous()
    else:
        layer = nn.Linear(columns, rows, bias is not None, device="meta")
    layer.weight = _frozen(weight)
    if bias is not None:
        layer.bias = _frozen(bias.to(weight.dtype))
    return layer


def was_conv1d(base: nn.Module) -> bool:
    """Whether a layer stands for a ``Conv1D`` of transformers."""
    if isinstance(base, QuantizedLinear):
        return base.transposed
    return isinstance(base, DenseConv1D) or made_from_conv1d(base)


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)
