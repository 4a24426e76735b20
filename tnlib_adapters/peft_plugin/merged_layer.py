"""What merging makes of a layer, and what its rounding takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.fourbit.dense_layers import dense_layer, plain_layer, was_conv1d
from tnlib_adapters.fourbit.layer import QuantizedLinear, packed_weight, relative_distance
from tnlib_adapters.fourbit.packed import PackedWeight
from tnlib_adapters.layers.base_layer import is_plain


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


# Relative Frobenius errors by form: of the update, and of the merged weight.
RoundingErrors = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Merged:
    """What merging makes of a base layer.

    Attributes
    ----------
    weight : Tensor
        The merged weight.
    layer : torch.nn.Module or None
        What takes the place of the base layer, where it cannot take the weight.
    rounding : list of RoundingErrors
        What the rounding of the weight takes; empty where nothing is rounded.
    """

    weight: Tensor
    layer: nn.Module | None = None
    rounding: list[RoundingErrors] = field(default_factory=list)


def merged_layer(layer: Any, base: nn.Module, total: Tensor, into: MergeInto) -> nn.Module:
    """The layer with the weight `total` that takes the place of a `base` that cannot take it.

    Parameters
    ----------
    layer : NetworkLayer
        The adapted layer, whose backend knows how to quantise.
    base : torch.nn.Module
        Its base layer, which is left as it is.
    total : Tensor, shape (out_features, in_features)
        The merged weight.
    into : MergeInto
        What it shall become.
    """
    packed = packed_weight(base)
    bias: Any = base.bias
    if not layer.is_quantized:
        return _with_weight(base, total.to(into.dtype)).train(base.training)
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
    twin = _twin(base)
    if hasattr(base, "state"):
        twin.state = copy.copy(base.state)
    layer.base_layer = twin
    layer.set_base_weight(total)
    other: nn.Module = layer.base_layer
    layer.base_layer = base
    return other


def _with_weight(base: nn.Module, weight: Tensor) -> nn.Module:
    """A layer as `base`, with a weight (out_features, in_features) of its own."""
    if not is_plain(base):
        return plain_layer(base, weight)
    twin = _twin(base)
    laid_out = weight.mT.contiguous() if is_transposed(base) else weight
    twin.weight = nn.Parameter(laid_out, requires_grad=False)
    return twin


def _twin(base: nn.Module) -> nn.Module:
    """A layer with the parameters and buffers of `base`, which can be given others."""
    twin = copy.copy(base)
    twin._parameters, twin._buffers = dict(base._parameters), dict(base._buffers)
    return twin


def rounding_errors(forms: Mapping[str, Tensor], total: Tensor, delta: Tensor) -> RoundingErrors:
    """What is lost of a merged weight `total`, of which `delta` is the update, in some forms."""
    of_delta, of_total = (float(torch.linalg.norm(part)) for part in (delta, total))
    found = {}
    for form, kept in forms.items():
        lost = float(torch.linalg.norm(kept.to(total.dtype) - total))
        # An update of zero has nothing to lose.
        found[form] = (lost / of_delta if of_delta else 0.0, lost / of_total if of_total else 0.0)
    return found


def rounding_report(errors: list[RoundingErrors]) -> str:
    """One sentence about what was lost in layers that became the same: median and worst."""
    said = {}
    for form in errors[0]:
        update, weight = zip(*(error[form] for error in errors if form in error), strict=True)
        said[form] = (
            f"errs by {share(sorted(update)[len(update) // 2])} in the median layer and by "
            f"{share(max(update))} in the worst (relative Frobenius norm; {max(weight):.2%} of the "
            "weight)"
        )
    (dtype, cast), *again = said.items()
    if again:
        return (
            f"merged and quantised again, which {again[0][1]}; {dtype} {cast}: merge into float32, "
            "without requantize, to keep all of the update"
        )
    return (
        f"merged into {dtype}: rounding the merged weights {cast}; merge into float32 to keep all "
        "of the update"
    )


def share(error: float) -> str:
    """An error in units of the update."""
    return f"{error:.1%} of the update" if error < 1 else f"{error:.1f} times the update"
