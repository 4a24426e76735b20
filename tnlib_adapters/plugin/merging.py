"""Merging over a quantised base: dense, in float32, and only then into what the layer becomes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.fourbit.dense import dense_layer, was_conv1d
from tnlib_adapters.fourbit.layer import QuantizedLinear, packed_weight, relative_distance
from tnlib_adapters.fourbit.packed import PackedWeight


@dataclass(frozen=True)
class MergeInto:
    """What a quantised layer becomes by merging.

    Attributes
    ----------
    dtype : torch.dtype
        Of the dense layer.
    requantize : bool
        Quantise the merged weight as the base was, instead.
    """

    dtype: torch.dtype = torch.bfloat16
    requantize: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating torch.dtype, got {self.dtype!r}")


def merged_layer(layer: Any, base: nn.Module, total: Tensor, into: MergeInto) -> nn.Module:
    """The layer with the weight `total` that takes the place of the quantised `base`.

    Parameters
    ----------
    layer : NetworkLayer
        The adapted layer, whose backend knows how to quantise.
    base : torch.nn.Module
        Its quantised base layer, which is left as it is.
    total : Tensor, shape (out_features, in_features)
        The merged weight.
    into : MergeInto
        What it shall become.
    """
    packed = packed_weight(base)
    bias: Any = base.bias
    if not into.requantize:
        return dense_layer(base, total.to(into.dtype)).train(base.training)
    if packed is not None:
        again = PackedWeight.of(total, packed.format, dtype=packed.dtype)
        dtype = getattr(base, "compute_dtype", None)
        made = QuantizedLinear(
            again,
            bias,
            compute_dtype=dtype,
            deviation=relative_distance(again.dequantize(total.dtype), total),
            transposed=was_conv1d(base),
        )
        return made.train(base.training)
    # Other quantisers rewrite a layer's parameters in place: those of a twin.
    twin = copy.copy(base)
    twin._parameters, twin._buffers = dict(base._parameters), dict(base._buffers)
    if hasattr(base, "state"):
        twin.state = copy.copy(base.state)
    layer.base_layer = twin
    layer.set_base_weight(total)
    other: nn.Module = layer.base_layer
    layer.base_layer = base
    return other


# Relative Frobenius errors by form: of the update, and of the merged weight.
Losses = dict[str, tuple[float, float]]


def losses(forms: Mapping[str, Tensor], total: Tensor, delta: Tensor) -> Losses:
    """What is lost of a merged weight `total`, of which `delta` is the update, in some forms."""
    norms = [float(torch.linalg.norm(part).clamp_min(1e-30)) for part in (delta, total)]
    found = {}
    for form, kept in forms.items():
        lost = float(torch.linalg.norm(kept.to(total.dtype) - total))
        found[form] = (lost / norms[0], lost / norms[1])
    return found


def told(losses: list[Losses]) -> str:
    """One sentence about what was lost in layers that became the same: median and worst."""
    takes = {}
    for form in losses[0]:
        update, weight = zip(*(loss[form] for loss in losses if form in loss), strict=True)
        takes[form] = (
            f"{sorted(update)[len(update) // 2]:.1%} of the update in the median layer and "
            f"{max(update):.1%} in the worst (relative Frobenius norm; {max(weight):.2%} of the "
            "weight)"
        )
    (dtype, cast), *again = takes.items()
    if again:
        return (
            f"merged and quantised again, which takes {again[0][1]}; {dtype} would take {cast}: "
            "merge without requantize to keep more"
        )
    return (
        f"merged into {dtype}: rounding the merged weights takes {cast}; merge into float32 to "
        "keep all of it"
    )
