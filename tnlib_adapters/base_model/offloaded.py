"""Modules whose values accelerate has put on another device or on disk until they are called.

A layer's weight is read here without calling the layer, and cores are never called, so that the
hooks by which accelerate brings values back have to be run by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Have the values of a module on the device where it computes, to read them."""
    hook = _hook(module)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def settle(module: nn.Module) -> None:
    """Bring the values of a module to the device where it computes, for good."""
    hook = _hook(module)
    if hook is None:
        return
    from accelerate.hooks import remove_hook_from_module

    hook.pre_forward(module)
    device = torch.device(hook.execution_device)
    remove_hook_from_module(module)
    module.to(device)


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer computes: where its weight is, or will be when it is called."""
    hook = _hook(layer)
    if hook is not None:
        return torch.device(hook.execution_device)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.device


def _hook(module: nn.Module) -> Any:
    """The hook that brings the values, where they are elsewhere."""
    found = module.__dict__.get("_hf_hook")
    if found is None:
        return None
    hooks = getattr(found, "hooks", (found,))
    return next((hook for hook in hooks if getattr(hook, "offload", False)), None)
