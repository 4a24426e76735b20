"""The layer that is adapted: its dense weight, and whether an update may be added to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from tnlib_adapters.sites import is_transposed


def base_weight(base: nn.Module) -> Tensor:
    """Weight of a Linear or a GPT-2 Conv1D as (out_features, in_features)."""
    weight: Tensor = base.weight  # type: ignore[assignment]  # not a Parameter under FSDP
    return weight.mT if is_transposed(base) else weight


def plain_weight(base: nn.Module) -> Tensor | None:
    """The base weight if adding the update to it before the product changes nothing else.

    Not where the layer is more than its weight (hooks, a subclass, a quantised weight), not where
    the weight is trained too, and not below float32, where the sum would round away small updates.
    """
    plain = type(base) is nn.Linear or is_transposed(base)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(base, name) for name in hooks) or hasattr(base, "_hf_hook")
    hooked = hooked or "forward" in base.__dict__
    hooked = hooked or _has_any_global_hook()  # type: ignore[no-untyped-call]
    if not plain or hooked:
        return None
    weight = base_weight(base)
    wide = weight.dtype in (torch.float32, torch.float64)
    return weight if wide and not weight.requires_grad else None


def fusible_weight(base: nn.Module, x: Tensor) -> Tensor | None:
    """The plain weight of a base layer that computes in its own dtype on ``x``."""
    weight = plain_weight(base)
    if weight is None or weight.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    return weight


def state_of(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight gets other values."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
