"""Two learning rates, as LoRA+ has them (arXiv 2402.12354): a higher one for cores of zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tnlib_adapters.checks import positive_number
from tnlib_adapters.networks.initializers import deviation
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_weight_decay: float = 0.0,
    **kwargs: Any,
) -> torch.optim.Optimizer:
    """An optimizer with a higher learning rate for the cores that start at zero.

    LoRA+ trains LoRA's B, which starts at zero, at a multiple of the rate of A. Here it is the core
    of zeros of every network. Norms, heads and biases have the rate `lr`.

    Parameters
    ----------
    model : torch.nn.Module
        An adapted model.
    optimizer_cls : type
        Such as ``torch.optim.AdamW``.
    lr : float
        Learning rate.
    loraplus_lr_ratio : float
        Multiple of it for the cores of zeros, at least 1.
    loraplus_weight_decay : float
        Weight decay of all groups.
    **kwargs
        Further arguments of the optimizer.

    Raises
    ------
    TypeError, ValueError
        If a number is none, or no core starts at zero (DoTA, but for ``init_weights="random"``).

    Examples
    --------
    >>> import peft
    >>> from tnlib_adapters import LoTRConfig
    >>> base = nn.Sequential(nn.Linear(8, 8))
    >>> model = peft.get_peft_model(base, LoTRConfig(r=2, target_modules=["0"]))
    >>> optimizer = create_loraplus_optimizer(
    ...     model, torch.optim.AdamW, lr=0.003, loraplus_lr_ratio=4
    ... )
    >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    [(0.003, 2), (0.012, 1)]
    """
    positive_number("lr", lr)
    positive_number("loraplus_lr_ratio", loraplus_lr_ratio)
    if loraplus_lr_ratio < 1:
        raise ValueError(f"loraplus_lr_ratio must be at least 1, got {loraplus_lr_ratio}")
    zero: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, WeightLayer):
            for name in layer.held:
                update = layer.stored(name)
                if not update.declared.anchored:
                    cores = [c for c in update.declared.cores if deviation(c.initializer) == 0]
                    zero |= {id(update.stored[core.key]) for core in cores}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = [parameter for parameter in trained if id(parameter) in zero]
    if not fast:
        raise ValueError(
            "no trained core starts at zero, so there is none to have the higher rate; for DoTA "
            'set init_weights="random", or use an optimizer with one rate'
        )
    slow = [parameter for parameter in trained if id(parameter) not in zero]
    groups = [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * loraplus_lr_ratio}]
    for group in groups:
        group["weight_decay"] = loraplus_weight_decay
    return optimizer_cls([group for group in groups if group["params"]], lr=lr, **kwargs)  # type: ignore[call-arg]
