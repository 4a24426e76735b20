"""The trainable state of one adapter of a layer, and the forward pass of a layer that carries some.

Which way to contract is a comparison of two integers: up to the network's break-even number of
tokens through the activations, above it by rebuilding the dense update, added to the base weight
first where that loses no precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnlib_adapters.network import Network
from tnlib_adapters.rebuilt import rebuilt_linear
from tnlib_adapters.series import Replacement, Series
from tnlib_adapters.shared import SharedCores, hold
from tnlib_adapters.sites import is_transposed
from tnlib_adapters.stacked import Stacked

ANCHOR = "anchor_"
Declaration = Network | Stacked | Series | Replacement


class Update(nn.Module):
    """The cores of one declaration, with the frozen initial ones where it is anchored.

    Cores of one weight are parameters under their own names (buffers, if frozen), anchors
    persistent buffers ``anchor_<name>``; all in `dtype`, whatever the base layer has. Cores of a
    sharing group live in `shared`, which this module refers to and does not register.

    Parameters
    ----------
    network : Network, Stacked, Series or Replacement
        Declaration.
    shared : SharedCores, optional
        Where the cores of groups are; needed if the declaration has some.
    device : torch.device, optional
        Where to allocate.
    dtype : torch.dtype
        Precision of the cores.

    Raises
    ------
    ValueError
        If the declaration shares cores and there is no `shared`, or one of another shape there.
    """

    def __init__(
        self,
        network: Declaration,
        shared: SharedCores | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        # Not a submodule: the container is registered once, for all layers.
        object.__setattr__(self, "_shared", shared)
        for core, shape in zip(network.cores, network.shapes.values(), strict=True):
            if hasattr(type(self), core.key) or core.key in self.__dict__:
                raise ValueError(f"a core cannot be called {core.key!r}; choose another name")
            if core.group is not None:
                if shared is None:
                    raise ValueError(f"core {core.name!r} is shared; pass shared=SharedCores()")
                shared.allocate(core, shape, device, dtype)
                continue
            hold(self, core, shape, device, dtype)
            if network.anchored:
                anchor = torch.zeros(shape, device=device, dtype=dtype)
                self.register_buffer(ANCHOR + core.key, anchor)
        network.planned()
        self.filled = False
        self._residual: tuple[tuple[int, int], Tensor] | None = None

    @property
    def additive(self) -> bool:
        """Whether it is an update of the weight, so that it has a dense form and merges."""
        return isinstance(self.network, Network | Stacked)

    @property
    def cores(self) -> dict[str, Tensor]:
        """Its cores by key; shared ones on the device of its own, where it has any."""
        own = next(iter(self.parameters(recurse=False)), None)
        found = {}
        for core in self.network.cores:
            value = getattr(self, core.key) if core.group is None else self._of_group(core.key)
            found[core.key] = value if own is None else value.to(own.device)
        return found

    def _of_group(self, key: str) -> Tensor:
        shared: SharedCores = self._shared  # type: ignore[assignment]
        return shared.get(key)

    @property
    def anchor(self) -> dict[str, Tensor] | None:
        """Frozen initial cores by key, in the dtype of the cores; None where not anchored."""
        if not self.network.anchored:
            return None
        # FSDP's mixed precision casts parameters for the forward pass, and no buffers.
        return {
            core.key: getattr(self, ANCHOR + core.key).to(getattr(self, core.key).dtype)
            for core in self.network.cores
        }

    @torch.no_grad()
    def start(self, values: Mapping[str, Tensor]) -> None:
        """Set the cores to initial `values`, and the anchor to the same.

        An anchor that starts elsewhere is given as ``anchor_<name>``. Shared cores that another
        update has started are left.
        """
        expected = self.network.shapes
        given = {name: tuple(values[name].shape) for name in expected if name in values}
        if given != expected:
            raise ValueError(f"initial cores have shapes {given}, the network needs {expected}")
        for core in self.network.cores:
            if core.group is None:
                getattr(self, core.key).copy_(values[core.key])
            else:
                self._shared.start(core.key, values[core.key])  # type: ignore[union-attr,operator]
        for name, core_anchor in (self.anchor or {}).items():
            core_anchor.copy_(values.get(ANCHOR + name, values[name]))
        self.filled = True
        self._residual = None

    def check_filled(self) -> None:
        """Raise RuntimeError if the cores were allocated and never set or loaded."""
        if self.filled or torch.compiler.is_compiling():
            return
        cores = self.cores.values()
        if any(core.is_meta for core in cores) or not any(core.any() for core in cores):
            raise RuntimeError(
                "the cores were allocated but never loaded. Either the file has none for this "
                "layer, being of another model; or a new adapter was made with "
                "init_weights='saved', which saved configurations say: set init_weights=True"
            )
        self.filled = True

    def fixed_part(self, weight: Tensor) -> tuple[Tensor, Network, dict[str, Tensor] | None]:
        """What stays fixed while the cores train: a weight, and the network to add to it."""
        network: Any = self.network
        if not network.residual or torch.compiler.is_compiling():
            return weight, network, self.anchor
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._residual is None or self._residual[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                fixed = weight - network.unanchored.delta(self.anchor or {})
            self._residual = (state, fixed)
        return self._residual[1], network.unanchored, None

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.filled = self.filled or any(prefix + key in state_dict for key in self.network.shapes)
        self._residual = None

    def _apply(self, *args: Any, **kwargs: Any) -> Update:
        self._residual = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def weight_network(self) -> Network | Stacked:
        """The declaration, where it is an update of the weight.

        Raises
        ------
        TypeError
            If it is not.
        """
        if not isinstance(self.network, Network | Stacked):
            raise TypeError(
                f"a {type(self.network).__name__.lower()} adapter is not a change of the weight: "
                "it has no dense form and cannot be merged or exported; for LoRETTA use "
                "variant='rep' without tt_head"
            )
        return self.network

    def delta(self) -> Tensor:
        """The dense update (out_features, in_features); differentiable.

        Raises
        ------
        TypeError
            If the adapter is not an update of the weight.
        """
        return self.weight_network().delta(self.cores, self.anchor)

    def entering(self, x: Tensor) -> Tensor:
        """What the base layer gets instead of ``x``."""
        if isinstance(self.network, Series) and self.network.side == "input":
            self.check_filled()
            return self.network.shift(x, self.cores, training=self.training)
        return x

    def leaving(self, x: Tensor, y: Tensor) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        self.check_filled()
        network = self.network
        if isinstance(network, Replacement):
            return network.replace(x, self.cores).to(y.dtype)
        if isinstance(network, Series):
            if network.side == "input":
                return y
            return network.shift(y, self.cores, training=self.training)
        return y + self._applied(x).to(y.dtype)

    def fuses(self, x: Tensor) -> bool:
        """Whether adding the update to the base weight is the cheaper way for ``x``."""
        network = self.network
        if not isinstance(network, Network | Stacked) or (network.dropout and self.training):
            return False
        return _tokens(x) > network.breakeven

    def _applied(self, x: Tensor) -> Tensor:
        """The update of the weight applied to ``x``."""
        network: Any = self.network
        cores = {key: core.to(x.device) for key, core in self.cores.items()}
        x = functional.dropout(x, network.dropout, self.training)
        if _tokens(x) <= network.breakeven:
            dtype = next(iter(cores.values())).dtype
            # Half precision would round away the difference of the two terms.
            autocast = not network.anchored and torch.is_autocast_enabled(x.device.type)
            with torch.autocast(x.device.type, enabled=autocast):
                y: Tensor = network.apply(x.to(dtype), cores, self.anchor)
            return y
        return rebuilt_linear(x, None, None, network, cores, self.anchor)

    def extra_repr(self) -> str:
        """Cores with their shapes, and the number of trainable values."""
        shapes = ", ".join(
            f"{name}: {'x'.join(map(str, shape))}" for name, shape in self.network.shapes.items()
        )
        anchored = ", anchored" if self.network.anchored else ""
        shared = ", shared in part" if any(c.group for c in self.network.cores) else ""
        return f"{shapes}, trainable={self.network.n_params}{shared}{anchored}"


def adapted_forward(
    base: nn.Module, x: Tensor, updates: Sequence[Update], *args: Any, **kwargs: Any
) -> Tensor:
    """``base(x)`` with the `updates`, in the fewest matrix products."""
    for update in updates:
        x = update.entering(x)
    weight = _fusible_weight(base, x)
    fused = next((u for u in updates if u.fuses(x)), None) if weight is not None else None
    if weight is not None and fused is not None:
        fused.check_filled()
        bias: Any = base.bias
        fixed, network, anchor = fused.fixed_part(weight)
        y = rebuilt_linear(x, fixed, bias, network, fused.cores, anchor)
    else:
        y = base(x, *args, **kwargs)
    for update in updates:
        if update is not fused:
            y = update.leaving(x, y)
    return y


def base_weight(base: nn.Module) -> Tensor:
    """Weight of a Linear or a GPT-2 Conv1D as (out_features, in_features)."""
    weight: Tensor = base.weight  # type: ignore[assignment]  # not a Parameter under FSDP
    return weight.mT if is_transposed(base) else weight


def _fusible_weight(base: nn.Module, x: Tensor) -> Tensor | None:
    """The base weight if adding the update to it before the product changes nothing else.

    Not where the layer is more than its weight (hooks, a subclass, a quantised weight), not where
    the weight is trained too, and not below float32, where the sum would round away small updates.
    """
    plain = type(base) is nn.Linear or is_transposed(base)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(base, name) for name in hooks) or hasattr(base, "_hf_hook")
    hooked = hooked or "forward" in base.__dict__
    if not plain or hooked or torch.is_autocast_enabled(x.device.type):
        return None
    weight = base_weight(base)
    wide = weight.dtype == x.dtype and weight.dtype in (torch.float32, torch.float64)
    return weight if wide and not weight.requires_grad else None


def _tokens(x: Tensor) -> int:
    return x.shape[:-1].numel()
