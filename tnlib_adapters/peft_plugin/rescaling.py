"""Adapters that count more or less for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tnlib_adapters.peft_plugin.weight_layer import WeightLayer


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiply what all adapters of these methods add by a number, in this context.

    Parameters
    ----------
    model : torch.nn.Module
        An adapted model. Norms and modules that are trained in full stay as they are.
    multiplier : float
        A finite number; 0 is the base model, 1 the adapter as it is.

    Raises
    ------
    TypeError
        If `multiplier` is no number, or an adapter takes the place of a layer.
    ValueError
        If it is not finite, the model has no adapter of these methods, or one is merged.

    Examples
    --------
    >>> import peft
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig
    >>> config = LoTRConfig(r=2, target_modules=["0"], init_weights=False)
    >>> model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    >>> x = torch.ones(1, 8)
    >>> whole, base = model(x), model.unload()(x)
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float):
        raise TypeError(f"multiplier must be a number, got {multiplier!r}")
    if not math.isfinite(multiplier):
        raise ValueError(f"multiplier must be finite, got {multiplier}")
    layers = [layer for layer in model.modules() if isinstance(layer, WeightLayer)]
    updates = [layer.stored(name) for layer in layers for name in layer.held]
    if not updates:
        raise ValueError("the model has no adapter of tnlib_adapters")
    if any(layer.merged or layer.rescaled for layer in layers):
        raise ValueError("adapters are merged, or rescaled already; undo that first")
    before = [update.network for update in updates]
    scaled = [network.scaled(multiplier) for network in before]
    try:
        for layer in layers:
            layer.rescaled = True
        for update, network in zip(updates, scaled, strict=True):
            update.network = network
            update.forget()
        yield
    finally:
        for layer in layers:
            layer.rescaled = False
        for update, network in zip(updates, before, strict=True):
            update.network = network
            update.forget()
