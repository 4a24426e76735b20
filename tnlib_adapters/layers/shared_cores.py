"""Cores that several weights use, each held once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tnlib_adapters.layers.multipliers import MULTIPLIERS, MultipliedCores
from tnlib_adapters.networks.core import Core


class SharedCores(MultipliedCores):
    """The cores of all sharing groups of a model, by their keys.

    Pass one to every :class:`NetworkLinear` whose method shares cores. Trainable cores are
    parameters, frozen ones persistent buffers.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear
    >>> shared, linears = SharedCores(), [torch.nn.Linear(64, 48) for _ in range(2)]
    >>> layers = [NetworkLinear.from_linear(x, LoTRConfig(r=4), shared=shared) for x in linears]
    >>> shared
    SharedCores(u_48x64: 48x4, v_48x64: 64x4, parameters=448)
    >>> layers[0].shared is layers[1].shared
    True
    """

    def allocate(
        self,
        core: Core,
        shape: Sequence[int],
        device: torch.device | None,
        dtype: torch.dtype,
        factor: float | None = None,
    ) -> None:
        """Make room for a core that is new; check the shape of one that is there.

        Its multiplier `factor` is that of the first weight that has it.

        Raises
        ------
        ValueError
            If the core is there with another shape.
        """
        present = getattr(self, core.key, None)
        if present is None:
            hold(self, core, shape, device, dtype)
            if factor is not None:
                self._factors[core.key] = factor
                self._hold_multipliers(getattr(self, core.key).device)
        elif tuple(present.shape) != tuple(shape):
            raise ValueError(
                f"core {core.name!r} of group {core.group!r} is {tuple(present.shape)} already and "
                f"cannot be {tuple(shape)}; give weights of other sizes another group"
            )

    @torch.no_grad()
    def initialize(self, key: str, value: Tensor, *, again: bool = False) -> None:
        """Set a core to its initial value, once: the layers that come later find it started."""
        if again or key not in self._set_keys:
            self.get(key).copy_(value / self._factors.get(key, 1.0))
            self._set_keys.add(key)

    def get(self, key: str) -> Tensor:
        """The core of a key."""
        value: Tensor = getattr(self, key)
        return value

    def extra_repr(self) -> str:
        """Cores with their shapes, and the number of trainable parameters."""
        shapes = [f"{key}: {'x'.join(map(str, value.shape))}" for key, value in self.named_values()]
        count = sum(parameter.numel() for parameter in self.parameters(recurse=False))
        return ", ".join([*shapes, f"parameters={count}"])

    def named_values(self) -> list[tuple[str, Tensor]]:
        """All cores with their keys."""
        values = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        return [(key, value) for key, value in values if key != MULTIPLIERS]


def empty(shape: Sequence[int], device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """A core whose values are still to come: nan, so that one whose values never come is known."""
    return torch.full(tuple(shape), math.nan, device=device, dtype=dtype)


def hold(
    module: nn.Module,
    core: Core,
    shape: Sequence[int],
    device: torch.device | None,
    dtype: torch.dtype,
    name: str | None = None,
) -> None:
    """Give a module a core without values: a parameter, or a persistent buffer if it is frozen."""
    value = empty(shape, device, dtype)
    if core.frozen:
        module.register_buffer(name or core.key, value)
    else:
        module.register_parameter(name or core.key, nn.Parameter(value))
