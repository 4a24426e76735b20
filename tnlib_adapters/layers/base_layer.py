"""The layer that is adapted: its weight, and whether an update may be added to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tnlib_adapters.base_model.linear_modules import is_transposed, without_values
from tnlib_adapters.execution.base_weight import BaseWeight, DenseWeight, PackedBase
from tnlib_adapters.fourbit.layer import packed_weight
from tnlib_adapters.layers.residual_base import ResidualLinear

# Kinds of hooks that torch has for all modules at once.
_OF_ALL_MODULES = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def base_weight(base: nn.Module) -> Tensor:
    """Weight of a Linear or a GPT-2 Conv1D as (out_features, in_features)."""
    weight: Tensor = base.weight  # type: ignore[assignment]  # not a Parameter under FSDP
    return weight.mT if is_transposed(base) else weight


def is_plain(base: nn.Module) -> bool:
    """Whether a layer's weight is a tensor of its own.

    Not so are weights that are computed from others (weight norm and other parametrisations), and
    those of subclasses, which say a dtype and hold their values in another form.
    """
    return type(base._parameters.get("weight")) is nn.Parameter


def fusible_weight(base: nn.Module) -> BaseWeight | None:
    """The weight of a layer, if adding the update to it before the product changes nothing else.

    Not where the layer is more than its weight (hooks, a subclass), not where the weight is trained
    too or of a subclass of tensors, and not below float32, where the sum would round away small
    updates. One in 4 bits has to be made dense anyway: it is in float32, and the sum is cast to the
    dtype in which the layer computes.
    """
    if _is_hooked(base):
        return None
    packed = _packed_weight(base)
    if packed is not None or not (type(base) is nn.Linear or is_transposed(base)):
        return packed
    if type(base.weight) not in (nn.Parameter, Tensor):
        return None
    weight = base_weight(base)
    wide = weight.dtype in (torch.float32, torch.float64)
    return DenseWeight(weight) if wide and not weight.requires_grad else None


def fusible_with(base: nn.Module, dtype: torch.dtype, device_type: str) -> BaseWeight | None:
    """The same for activations of `dtype`: a dense weight where the layer computes in its own."""
    weight = fusible_weight(base)
    if isinstance(weight, DenseWeight):
        own = weight.weight.dtype == dtype and not torch.is_autocast_enabled(device_type)
        return weight if own else None
    return weight


def _packed_weight(base: nn.Module) -> PackedBase | None:
    return base.weights if isinstance(base, ResidualLinear) else packed_weight(base)


def dense_weight(base: nn.Module) -> Tensor:
    """The weight as (out_features, in_features); of a layer in 4 bits a new one, in float32."""
    packed = _packed_weight(base)
    if packed is not None:
        return packed.dequantize(torch.float32)
    weight = _computed_weight(base)
    if weight is not None:
        return weight.mT if is_transposed(base) else weight
    weight = base_weight(base)
    wrapped = type(weight) not in (nn.Parameter, Tensor) and not hasattr(weight, "full_tensor")
    return weight.dequantize() if wrapped else weight


def _computed_weight(base: nn.Module) -> Tensor | None:
    """The weight that hooks of torch's older style compute before a call; None without such.

    What lies in ``weight`` is that of the last call, and the values it is made of may be others.
    """
    for hook in base._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return hook.compute_weight(base)  # type: ignore[no-any-return]
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            return hook.compute_weight(base, do_power_iteration=False)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return hook.apply_mask(base)  # type: ignore[no-untyped-call,no-any-return]
    return None


def only_multiplies(base: nn.Module) -> bool:
    """Whether a dense layer gives the product with its weight, plus the bias, and nothing else.

    Of layers with hooks, and of classes with a forward pass of their own, a copy is tried.
    """
    known = type(base).forward is nn.Linear.forward or is_transposed(base)
    if known and not has_hooks(base):
        return True
    weight = dense_weight(base).detach()
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(2, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    bias: Any = getattr(base, "bias", None)
    values = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    copies = {name: value.detach().clone() for name, value in values.items()}
    expected = functional.linear(x, weight, bias)
    try:
        with torch.no_grad():
            found = functional_call(without_values(base).eval(), copies, (x,))
    except Exception:  # whatever a foreign layer raises here, it may not elsewhere
        return True
    error = torch.linalg.norm((found - expected).float())
    # Roundoff is far below, anything else far above.
    return bool(error <= torch.finfo(weight.dtype).eps ** 0.5 * torch.linalg.norm(expected.float()))


def has_hooks(base: nn.Module) -> bool:
    """Whether a layer is more than its forward: hooks of torch's or accelerate's."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(base, name) for name in hooks) or hasattr(base, "_hf_hook")
    return hooked or "forward" in base.__dict__


def _is_hooked(base: nn.Module) -> bool:
    return has_hooks(base) or any(getattr(modules, f"_global_{name}") for name in _OF_ALL_MODULES)


def versions_of(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """What changes when one of some tensors gets other values."""
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
