"""The forward pass of a layer that carries updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.fourbit.product import computing_dtype
from tnlib_adapters.layers.base_layer import fusible_with
from tnlib_adapters.layers.update import Update
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration


def mixed_forward(
    base: nn.Module,
    groups: Sequence[tuple[Tensor, Update | None]],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """``base(x)`` with an update for every group of rows, or none.

    Updates of weights are added to what the base layer gives for all rows at once; others need it
    for their rows alone.
    """
    updates = [update for _, update in groups if update is not None]
    if all(update.additive for update in updates):
        y: Tensor = base(x, *args, **kwargs)
        for index, update in groups:
            if update is not None:
                update.check_initialized()
                network: AdditiveDeclaration = update.network  # type: ignore[assignment]
                part = network.applied(x.index_select(0, index), update).to(y.dtype)
                keeps = torch.is_grad_enabled()
                y = y.index_add(0, index, part) if keeps else y.index_add_(0, index, part)
        return y
    parts = [
        adapted_forward(base, [] if update is None else [update], x.index_select(0, index), *args)
        for index, update in groups
    ]
    return in_order(parts, [index for index, _ in groups])


def in_order(parts: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """Rows that were computed in groups, each at its place."""
    return torch.cat([*parts]).index_select(0, torch.cat([*indices]).argsort())


def adapted_forward(
    base: nn.Module, updates: Sequence[Update], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """``base(x)`` with the `updates`, in the fewest matrix products."""
    for update in updates:
        update.check_initialized()
        x = update.network.transform_input(x, update)
    device_type = x.device.type
    weight = fusible_with(base, x.dtype, device_type)
    fused, y = None, None
    if weight is not None:
        bias: Any = base.bias
        # A dense weight is there only where the layer computes in the dtype of x.
        packed = weight.kind == "packed"
        inner = x.to(computing_dtype(base, x.dtype, device_type)) if packed else x
        with torch.autocast(device_type, enabled=False):
            for fused in updates:
                y = fused.network.forward_with_base(inner, weight, bias, fused)
                if y is not None:
                    y = y.to(x.dtype)
                    break
    if y is None:
        fused, y = None, base(x, *args, **kwargs)
    for update in updates:
        if update is not fused:
            y = update.network.transform_output(x, y, update)
    return y
