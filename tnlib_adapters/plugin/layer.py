"""The PEFT layer of every network method: a base layer and one update per adapter name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tnlib_adapters.network import Network, Site, computing
from tnlib_adapters.update import Update, adapted_forward, base_weight, is_transposed


class NetworkLayer(nn.Module, BaseTunerLayer):
    """A linear layer adapted by networks. Subclasses differ in their prefix only.

    The updates sit in one module dictionary ``<prefix>update``, keyed by adapter name. Its
    values are in float32 at least, also over a half-precision base.
    """

    prefix: str

    def __init_subclass__(cls, *, prefix: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.prefix = prefix
        cls.adapter_layer_names = (prefix + "update",)
        cls.other_param_names = ()

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        inner = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(inner, **quantization)
        self.out_features, self.in_features = _features(inner, self.quantization_backend)
        self.add_module(self.prefix + "update", nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def updates(self) -> nn.ModuleDict:
        """The update of every adapter name."""
        return self.get_submodule(self.prefix + "update")  # type: ignore[return-value]

    def site(self, name: str) -> Site:
        """Return this layer as a place for a network."""
        return Site(name, self.out_features, self.in_features)

    def add_adapter(self, adapter_name: str, network: Network, inference_mode: bool) -> None:
        """Allocate an update on the base layer's device; the tuner sets its values."""
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        self.updates[adapter_name] = Update(
            network, device=weight.device, dtype=computing([weight])
        )
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an update; unlike PEFT's own layers, never cast it to the base layer's dtype."""
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        target = weight.device if device is None else device
        update = self._update(adapter_name)
        if target.type != "meta" and not any(p.device.type == "meta" for p in update.parameters()):
            update.to(target)

    def oriented_base_weight(self) -> Tensor:
        """The dense base weight as (out_features, in_features)."""
        return self._oriented(self.get_base_weight())

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update of one adapter, laid out as the base layer's weight."""
        return self._oriented(self._update(adapter).delta())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer, plus the active updates unless disabled or merged."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        active = [self._update(name) for name in self.active_adapters if name in self.updates]
        return adapted_forward(self.base_layer, x, active, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weight: in float32, then cast to the weight's dtype.

        Parameters
        ----------
        safe_merge : bool
            Check that the merged weight is finite before it is written.
        adapter_names : list of str, optional
            Adapters to merge, the active ones by default.

        Raises
        ------
        ValueError
            With `safe_merge`, if the merged weight would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.updates:
                self._add_to_base(name, 1, check=safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract all merged updates from the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self._add_to_base(self.merged_adapters.pop(), -1, check=False)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """The update is additive, so PEFT can factorise it."""
        return True

    @torch.no_grad()
    def check_update(self, name: str) -> None:
        """Raise ValueError if an update is not finite."""
        if not torch.isfinite(self._update(name).delta()).all():
            raise ValueError(f"adapter {name!r} holds nan or inf; nothing was merged")

    @torch.no_grad()
    def _add_to_base(self, name: str, sign: int, *, check: bool) -> None:
        weight = self.get_base_weight()
        delta = self.get_delta_weight(name)
        total = torch.add(weight.to(computing([weight, delta])), delta, alpha=sign)
        if check and not torch.isfinite(total).all():
            raise ValueError(
                f"merging adapter {name!r} would make the weight nan or inf; this layer was not "
                "merged, and those before it can be unmerged"
            )
        self.set_base_weight(total.to(weight.dtype))

    def _update(self, name: str) -> Update:
        return self.updates[name]  # type: ignore[return-value]

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.mT if is_transposed(self.get_base_layer()) else weight


def _features(layer: nn.Module, backend: Any) -> tuple[int, int]:
    """Output and input width of a supported layer; TypeError for any other."""
    if is_transposed(layer):
        out_features, in_features = base_weight(layer).shape
        return int(out_features), int(in_features)
    used = not isinstance(layer, NonDynamicallyQuantizableLinear)
    if (isinstance(layer, nn.Linear) and used) or backend is not None:
        return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]
    raise TypeError(
        f"cannot adapt a {type(layer).__name__}: only torch.nn.Linear, transformers' Conv1D and "
        "quantised linear layers are supported (not torch.nn.MultiheadAttention's output, whose "
        "weight is used without its layer); leave it out of target_modules"
    )
