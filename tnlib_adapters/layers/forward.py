"""The forward pass of a layer that carries updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.fourbit.product import computing_dtype
from tnlib_adapters.layers.base_layer import fusible_weight
from tnlib_adapters.layers.update import Update


def adapted_forward(
    base: nn.Module, updates: Sequence[Update], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """``base(x)`` with the `updates`, in the fewest matrix products."""
    for update in updates:
        x = update.entering(x)
    weight = fusible_weight(base, x)
    joint, y = None, None
    if weight is not None:
        bias: Any = base.bias
        packed = not isinstance(weight, Tensor)
        inner = x.to(computing_dtype(base, x)) if packed else x
        # A layer in 4 bits says itself in which dtype it computes.
        kind, enabled = x.device.type, torch.is_autocast_enabled(x.device.type) and not packed
        for joint in updates:
            with torch.autocast(kind, enabled=enabled):
                y = joint.joined(inner, weight, bias)
            if y is not None:
                y = y.to(x.dtype)
                break
    if y is None:
        joint, y = None, base(x, *args, **kwargs)
    for update in updates:
        if update is not joint:
            y = update.leaving(x, y)
    return y
