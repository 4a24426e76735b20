"""What every method puts into a model: adapted linear layers, and one store of shared cores."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from tnlib_adapters.adapted import adapted_forward
from tnlib_adapters.base import dense_weight
from tnlib_adapters.core import computing
from tnlib_adapters.fourbit.dense import DenseConv1D, DenseLinear
from tnlib_adapters.fourbit.layer import packed_weight
from tnlib_adapters.plugin.merging import Losses, MergeInto, losses, merged_layer
from tnlib_adapters.residual import ResidualLinear
from tnlib_adapters.shared import SharedCores
from tnlib_adapters.sites import features, is_transposed
from tnlib_adapters.update import Declaration, Update
from tnlib_adapters.view import UpdateView, view

# Where the store of shared cores sits in the model; without "_", so that no prefix is in it.
STORE = "corestore"


class AdapterPart(nn.Module, BaseTunerLayer):
    """A module that holds something of every adapter, in one dictionary by adapter name.

    Subclasses differ in their prefix only. Values are in float32 at least, also over a
    half-precision base.
    """

    prefix: str
    attribute: str

    def __init_subclass__(cls, *, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if prefix is not None:
            cls.prefix = prefix
            cls.adapter_layer_names = (prefix + cls.attribute,)
            cls.other_param_names = ()

    def __init__(self) -> None:
        super().__init__()
        self.add_module(self.prefix + self.attribute, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def held(self) -> nn.ModuleDict:
        """What is held, by adapter name."""
        return self.get_submodule(self.prefix + self.attribute)  # type: ignore[return-value]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can factorise the update."""
        return True


class CoreStore(AdapterPart):
    """The cores that layers share, at the root of the model: one :class:`SharedCores` an adapter.

    PEFT treats it as a layer, so that it is saved, switched, disabled and deleted as one; it has
    nothing to merge. Layers refer to it without registering it.
    """

    attribute = "cores"
    weight = bias = in_features = out_features = None  # type: ignore[assignment]

    def cores(self, adapter_name: str) -> SharedCores:
        """The shared cores of an adapter, empty at first."""
        if adapter_name not in self.held:
            self.held[adapter_name] = SharedCores()
        return self.held[adapter_name]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Pass on what comes: a root that is a Sequential calls all its children in turn."""
        return x

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Note what the layers merge."""
        for name in adapter_names or self.active_adapters:
            if name in self.held and name not in self.merged_adapters:
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Note that the layers unmerge."""
        self.merged_adapters.clear()

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move only where a device is named; the layers know their own."""
        if device is not None and adapter_name in self.held and not _on_meta(self.held):
            self.held[adapter_name].to(device)


class NetworkLayer(AdapterPart):
    """A linear layer adapted by networks."""

    attribute = "update"

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        inner = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(inner, **quantization)
        self.out_features, self.in_features = _features(inner)
        # What the cast of a merge took, by adapter; what merging makes of a quantised base, and
        # that base itself while something is merged.
        self.rounding: dict[str, Losses] = {}
        self.merging = MergeInto()
        self._set_aside: list[nn.Module] = []

    def add_adapter(
        self,
        adapter_name: str,
        network: Declaration,
        shared: SharedCores | None,
        inference_mode: bool,
    ) -> None:
        """Allocate an update on the base layer's device; the tuner sets its values."""
        network.check_fits(self.out_features, self.in_features)
        if isinstance(self.get_base_layer(), ResidualLinear):
            raise ValueError(
                "the base is Q(W - N(theta_0)) in 4 bits, for the one adapter that has theta_0; "
                "load the model again for another"
            )
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        self.held[adapter_name] = Update(
            network, shared, device=weight.device, dtype=computing([weight])
        )
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def update(self, adapter_name: str) -> Update:
        """The update of one adapter."""
        return self.held[adapter_name]  # type: ignore[return-value]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an update; unlike PEFT's own layers, never cast it to the base layer's dtype."""
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        target = weight.device if device is None else device
        if target.type != "meta" and not _on_meta(self.update(adapter_name)):
            self.update(adapter_name).to(target)

    def oriented_base_weight(self) -> Tensor:
        """The dense base weight as (out_features, in_features)."""
        return self.dense_of(self.get_base_layer())

    def dense_of(self, base: nn.Module) -> Tensor:
        """The dense weight (out_features, in_features) of a base layer, quantised or not."""
        if packed_weight(base) is not None or self.quantization_backend is None:
            return dense_weight(base)
        if isinstance(base, DenseLinear | DenseConv1D):
            return dense_weight(base)
        return self._oriented(self.quantization_backend.get_base_weight(base))

    @property
    def is_quantized(self) -> bool:
        """Whether the base layer is quantised, or was before something was merged into it."""
        packed = packed_weight(self._set_aside[0] if self._set_aside else self.get_base_layer())
        return packed is not None or self.quantization_backend is not None

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update of one adapter, laid out as the base layer's weight."""
        return self._oriented(self._named(adapter).delta())

    def as_tnlib(self, adapter: str = "default") -> UpdateView:
        """The update of one adapter as tnlib objects; see :class:`~tnlib_adapters.UpdateView`."""
        return view(self._named(adapter))

    def _named(self, adapter: str) -> Update:
        if adapter not in self.held:
            raise ValueError(f"there is no adapter {adapter!r} here; there are {[*self.held]}")
        return self.update(adapter)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer, plus the active updates unless disabled or merged."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        return adapted_forward(*self.adapted, x, *args, **kwargs)

    @property
    def adapted(self) -> tuple[nn.Module, list[Update]]:
        """The base layer, and the updates of the active adapters; none where they are merged."""
        if self.merged:
            return self.base_layer, []
        active = [self.update(name) for name in self.active_adapters if name in self.held]
        return self.base_layer, active

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weight: in float32, then cast to the weight's dtype.

        A quantised base is set aside, and a layer as `merging` says takes its place.

        Parameters
        ----------
        safe_merge : bool
            Check that the merged weight is finite before it is written.
        adapter_names : list of str, optional
            Adapters to merge, the active ones by default.

        Raises
        ------
        TypeError
            If an adapter is not an update of the weight.
        ValueError
            With `safe_merge`, if the merged weight would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.held:
                self._add_to_base(name, 1, check=safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract all merged updates from the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        if self._set_aside:
            weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
            self.base_layer = self._set_aside.pop().to(weight.device)
            self.merged_adapters.clear()
            self.rounding.clear()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            self._add_to_base(name, -1, check=False)
            self.rounding.pop(name, None)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can factorise the update: if it is one of the weight."""
        return adapter_name not in self.held or self.update(adapter_name).additive

    @torch.no_grad()
    def check_update(self, name: str) -> None:
        """Raise ValueError if an update is not finite."""
        if not torch.isfinite(self.update(name).delta()).all():
            raise ValueError(f"adapter {name!r} holds nan or inf; nothing was merged")

    @torch.no_grad()
    def _add_to_base(self, name: str, sign: int, *, check: bool) -> None:
        if self.is_quantized:
            self._merge_quantized(name, check=check)
            return
        weight = self.get_base_weight()
        delta = self.get_delta_weight(name).to(weight.device)
        total = torch.add(weight.to(computing([weight, delta])), delta, alpha=sign)
        if check:
            _check_finite(total, name)
        merged = total.to(weight.dtype)
        self.set_base_weight(merged)
        if merged.dtype != total.dtype and sign > 0:
            self.rounding[name] = losses({str(merged.dtype): merged}, total, delta)

    def _merge_quantized(self, name: str, *, check: bool) -> None:
        """Put a layer with all merged updates and this one in the place of the quantised base."""
        base = self._set_aside[0] if self._set_aside else self.get_base_layer()
        dense = self.dense_of(base)
        total = dense.to(computing([dense]), copy=True)
        delta = self.update(name).delta().to(total.device)
        for merged in self.merged_adapters:
            total += self.update(merged).delta().to(total.device)
        total += delta
        if check:
            _check_finite(total, name)
        made = merged_layer(self, base, total, self.merging)
        forms = {str(self.merging.dtype): total.to(self.merging.dtype)}
        if self.merging.requantize:
            forms["quantised"] = self.dense_of(made)
        if self.merging.requantize or self.merging.dtype != total.dtype:
            self.rounding[name] = losses(forms, total, delta)
        self._set_aside = [base]
        self.base_layer = made

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.mT if is_transposed(self.get_base_layer()) else weight


def _check_finite(total: Tensor, name: str) -> None:
    if not torch.isfinite(total).all():
        raise ValueError(
            f"merging adapter {name!r} would make the weight nan or inf; this layer was not "
            "merged, and those before it can be unmerged"
        )


def _features(layer: nn.Module) -> tuple[int, int]:
    """Output and input width of a supported layer; TypeError for any other."""
    widths = features(layer)
    if widths is None:
        raise TypeError(
            f"cannot adapt a {type(layer).__name__}: only torch.nn.Linear, transformers' Conv1D "
            "and quantised linear layers are supported (not torch.nn.MultiheadAttention's output, "
            "whose weight is used without its layer); leave it out of target_modules"
        )
    return widths


def _on_meta(module: nn.Module) -> bool:
    return any(value.device.type == "meta" for value in module.state_dict().values())
