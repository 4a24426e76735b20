"""The multipliers of a module's stored cores, a buffer in its state.

They are fixed when the module is made, and are part of how it computes. Values that come from a
state with other multipliers are converted. All are powers of two, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Its name in the state of a module.
MULTIPLIERS = "multipliers"


def hold(module: nn.Module, factors: Mapping[str, float], device: torch.device | None) -> None:
    """Keep the multipliers of a module's cores in its state."""
    values = torch.tensor([*factors.values()], dtype=torch.float32, device=device)
    module.register_buffer(MULTIPLIERS, values)


@torch.no_grad()
def convert(module: nn.Module, factors: Mapping[str, float]) -> None:
    """Divide the cores of a module by its multipliers, instead of those that its state says."""
    said: Tensor = getattr(module, MULTIPLIERS)
    if said.is_meta:
        return
    others = said.tolist()
    if not all(other > 0 and math.frexp(other)[0] == 0.5 for other in others):
        raise RuntimeError(f"the multipliers of {', '.join(factors)} were never loaded: {others}")
    for (key, factor), other in zip(factors.items(), others, strict=True):
        if other != factor:
            getattr(module, key).mul_(other / factor)
    said.copy_(torch.tensor([*factors.values()]))


def check_state(state: Mapping[str, Any], prefix: str, keys: list[str], errors: list[str]) -> None:
    """Add an error where a state has cores and no multipliers, so that their values are others."""
    if any(prefix + key in state for key in keys) and prefix + MULTIPLIERS not in state:
        errors.append(
            f"{prefix}{keys[0]} and others come without multipliers: they were saved by a module "
            "without rate scaling; load them into one with rate_scaling=False (strength=None)"
        )
