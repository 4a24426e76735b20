"""The trainable state of one update, and the forward pass of a layer that carries some.

Which way to contract is a comparison of two integers: up to the network's break-even number of
tokens through the activations, above it by rebuilding the dense update, added to the base weight
first where that loses no precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.network import Network
from tnlib_adapters.rebuilt import rebuilt_linear

ANCHOR = "anchor_"


class Update(nn.Module):
    """Trainable cores of one network, with the frozen initial ones where it is anchored.

    Cores are parameters under their own names, anchors persistent buffers ``anchor_<name>``;
    both in `dtype`, whatever the base layer has.

    Parameters
    ----------
    network : Network
        Declaration.
    device : torch.device, optional
        Where to allocate.
    dtype : torch.dtype
        Precision of the cores.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        for name, shape in network.shapes.items():
            self.register_parameter(
                name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            )
        if network.anchored:
            for name, core in self.cores.items():
                self.register_buffer(ANCHOR + name, torch.zeros_like(core, requires_grad=False))
        self.filled = False
        self._residual: tuple[tuple[int, int], Tensor] | None = None

    @property
    def cores(self) -> dict[str, Tensor]:
        """Trainable cores by name."""
        return {core.name: getattr(self, core.name) for core in self.network.cores}

    @property
    def anchor(self) -> dict[str, Tensor] | None:
        """Frozen initial cores by name; None where the network is not anchored."""
        if not self.network.anchored:
            return None
        return {core.name: getattr(self, ANCHOR + core.name) for core in self.network.cores}

    @torch.no_grad()
    def start(self, values: Mapping[str, Tensor]) -> None:
        """Set the cores to initial `values`, and the anchor to the same.

        An anchor that starts elsewhere is given as ``anchor_<name>``.
        """
        expected = self.network.shapes
        given = {name: tuple(values[name].shape) for name in expected if name in values}
        if given != expected:
            raise ValueError(f"initial cores have shapes {given}, the network needs {expected}")
        for name, core in self.cores.items():
            core.copy_(values[name])
        for name, core in (self.anchor or {}).items():
            core.copy_(values.get(ANCHOR + name, values[name]))
        self.filled = True
        self._residual = None

    def check_filled(self) -> None:
        """Raise RuntimeError if training starts from cores that were never set or loaded."""
        if self.filled or not self.training:
            return
        if not any(core.any() for core in self.cores.values()):
            raise RuntimeError(
                "the cores were allocated but never loaded: init_weights='saved' is what saved "
                "configurations say; to start a new adapter from one, set init_weights=True"
            )
        self.filled = True

    def fixed_part(self, weight: Tensor) -> tuple[Tensor, Network, dict[str, Tensor] | None]:
        """What stays fixed while the cores train: a weight, and the network to add to it."""
        if not self.network.residual:
            return weight, self.network, self.anchor
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._residual is None or self._residual[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                fixed = weight - self.network.unanchored.delta(self.anchor or {})
            self._residual = (state, fixed)
        return self._residual[1], self.network.unanchored, None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._residual = None

    def _apply(self, *args: Any, **kwargs: Any) -> Update:
        self._residual = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def delta(self) -> Tensor:
        """The dense update (out_features, in_features); differentiable."""
        return self.network.delta(self.cores, self.anchor)

    def forward(self, x: Tensor) -> Tensor:
        """The update applied to ``x`` of shape (..., in_features)."""
        self.check_filled()
        cores = self.cores
        if _tokens(x) <= self.network.breakeven:
            dtype = next(iter(cores.values())).dtype
            return self.network.apply(x.to(dtype), cores, self.anchor).to(x.dtype)
        return rebuilt_linear(x, None, None, self.network, cores, self.anchor)

    def extra_repr(self) -> str:
        """Cores with their shapes, and the number of trainable values."""
        shapes = ", ".join(
            f"{name}: {'x'.join(map(str, shape))}" for name, shape in self.network.shapes.items()
        )
        anchored = ", anchored" if self.network.anchored else ""
        return f"{shapes}, trainable={self.network.n_params}{anchored}"


def adapted_forward(
    base: nn.Module, x: Tensor, updates: Sequence[Update], *args: Any, **kwargs: Any
) -> Tensor:
    """``base(x)`` plus the `updates` applied to ``x``, in the fewest matrix products."""
    weight = _fusible_weight(base, x)
    if weight is not None and updates and _tokens(x) > updates[0].network.breakeven:
        first, *updates = updates
        first.check_filled()
        bias: Any = base.bias
        fixed, network, anchor = first.fixed_part(weight)
        y = rebuilt_linear(x, fixed, bias, network, first.cores, anchor)
    else:
        y = base(x, *args, **kwargs)
    for update in updates:
        y = y + update(x).to(y.dtype)
    return y


def base_weight(base: nn.Module) -> Tensor:
    """Weight of a Linear or a GPT-2 Conv1D as (out_features, in_features)."""
    weight: Tensor = base.weight  # type: ignore[assignment]  # not a Parameter under FSDP
    return weight.mT if is_transposed(base) else weight


def is_transposed(base: nn.Module) -> bool:
    """Whether the layer keeps its weight as (in_features, out_features), as GPT-2 does."""
    return type(base).__name__ == "Conv1D" and hasattr(base, "nf")


def _fusible_weight(base: nn.Module, x: Tensor) -> Tensor | None:
    """The base weight if adding the update to it before the product changes nothing else.

    Not where the layer is more than its weight (hooks, a subclass, a quantised weight), not where
    the weight is trained too, and not below float32, where the sum would round away small updates.
    """
    plain = type(base) is nn.Linear or is_transposed(base)
    hooked = base._forward_hooks or base._forward_pre_hooks or hasattr(base, "_hf_hook")
    if not plain or hooked or torch.is_autocast_enabled(x.device.type):
        return None
    weight = base_weight(base)
    wide = weight.dtype == x.dtype and weight.dtype in (torch.float32, torch.float64)
    return weight if wide and not weight.requires_grad else None


def _tokens(x: Tensor) -> int:
    return x.shape[:-1].numel()
