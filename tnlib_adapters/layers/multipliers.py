"""Modules whose cores are stored divided by multipliers, which are a buffer in their state.

Multipliers are fixed when the module is made, and are part of how it computes. Values that come
from a state with other multipliers are converted. All are powers of two, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Their name in the state of a module.
MULTIPLIERS = "multipliers"


class MultipliedCores(nn.Module):
    """Base of the modules that hold cores."""

    def __init__(self) -> None:
        super().__init__()
        # Names of the values that were set or came from a file.
        self._set_keys: set[str] = set()
        # What the cores are divided by, by key; none for those that are stored as they are.
        self._factors: dict[str, float] = {}

    def _name(self, key: str) -> str:
        """The name under which a core is stored."""
        return key

    def _hold_multipliers(self, device: torch.device | None) -> None:
        """Keep the multipliers in the state."""
        values = torch.tensor([*self._factors.values()], dtype=torch.float32, device=device)
        self.register_buffer(MULTIPLIERS, values)

    @torch.no_grad()
    def _convert(self) -> None:
        """Divide the cores by these multipliers, instead of those that the state says."""
        said: Tensor | None = getattr(self, MULTIPLIERS, None)
        if said is None or said.is_meta:
            return
        others = said.tolist()
        if not all(other > 0 and math.frexp(other)[0] == 0.5 for other in others):
            keys = ", ".join(self._factors)
            raise RuntimeError(
                f"the multipliers of {keys} are no powers of two: {others}; they were never "
                "loaded, or the file is damaged"
            )
        for (key, factor), other in zip(self._factors.items(), others, strict=True):
            if other != factor:
                getattr(self, key).mul_(other / factor)
        said.copy_(torch.tensor([*self._factors.values()]))

    def take_over(self) -> None:
        """Use values that were written in place, with their multipliers."""
        self._set_keys |= {*self._parameters, *self._buffers}
        self._convert()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )
        own = [*self._parameters, *self._buffers]
        self._set_keys |= {key for key in own if prefix + key in state_dict}
        names = [prefix + self._name(key) for key in self._factors]
        if any(name in state_dict for name in names) and prefix + MULTIPLIERS not in state_dict:
            errors.append(
                f"{names[0]} and others come without multipliers: they were saved by a module "
                "without rate scaling; load them into one with rate_scaling=False (strength=None)"
            )
        if prefix + MULTIPLIERS in state_dict and not names:
            errors.append(
                f"{prefix + MULTIPLIERS} comes with cores that were saved by a module with rate "
                "scaling; load them into one with rate_scaling=True"
            )
        if names:
            self._convert()
