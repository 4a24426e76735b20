"""What every method puts into a model: adapted linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from tnlib_adapters.base_model.linear_modules import features, is_transposed
from tnlib_adapters.base_model.offloaded import device_of, onloaded
from tnlib_adapters.fourbit.dense_layers import DenseConv1D, DenseLinear
from tnlib_adapters.fourbit.layer import packed_weight
from tnlib_adapters.layers.base_layer import dense_weight, is_plain, only_multiplies
from tnlib_adapters.layers.forward import adapted_forward, mixed_forward
from tnlib_adapters.layers.residual_base import ResidualLinear
from tnlib_adapters.layers.update import Update
from tnlib_adapters.networks.as_tnlib import UpdateView
from tnlib_adapters.networks.core import computing
from tnlib_adapters.networks.declaration_kinds import Declaration
from tnlib_adapters.peft_plugin.core_store import CoreStore
from tnlib_adapters.peft_plugin.merged_layer import (
    Merged,
    MergeInto,
    merged_layer,
    rounding_errors,
)
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields


class NetworkLayer(WeightLayer):
    """A linear layer adapted by networks."""

    def __init__(self, base_layer: nn.Module, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        inner = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(inner, **quantization)
        self.out_features, self.in_features = _features(inner)
        # The base that a merged layer stands for.
        self._set_aside: list[nn.Module] = []

    def add_adapter(
        self,
        adapter_name: str,
        network: Declaration,
        store: CoreStore | None,
        inference_mode: bool,
        device: torch.device,
        strength: float | None = None,
    ) -> None:
        """Allocate an update on a device, see :class:`Update`; the tuner sets its values.

        `store` is where shared cores are, None for a declaration without.
        """
        network.check_fits(self.out_features, self.in_features)
        base = self.get_base_layer()
        if isinstance(base, ResidualLinear):
            raise ValueError(
                "the base is Q(W - N(theta_0)) in 4 bits, for the one adapter that has theta_0; "
                "load the model again for another"
            )
        shared = self.shared_cores(adapter_name, store)
        weight: Tensor = base.weight  # type: ignore[assignment]
        if strength is not None and network.in_series_with_weight:
            with onloaded(base):
                network = network.beside(self.oriented_base_weight())
        update = Update(
            network, shared, device=device, dtype=computing([weight]), strength=strength
        )
        self.hold(adapter_name, update, inference_mode)

    def update(self, adapter_name: str) -> Update:
        """The update of one adapter."""
        return self.held[adapter_name]  # type: ignore[return-value]

    def place(self) -> torch.device:
        """Where the layer computes."""
        return device_of(self.get_base_layer())

    @property
    def base_parameter(self) -> Any:
        """The weight of the base layer; None where it is computed."""
        return self.get_base_layer()._parameters.get("weight")

    def check_mergeable(self, adapter_name: str) -> None:
        """Raise TypeError or ValueError if an adapter cannot be merged."""
        self.update(adapter_name).weight_network()
        # Of a quantised base, whether it can be read.
        packed_weight(self.get_base_layer())

    def base_dtype(self) -> torch.dtype | None:
        """Floating dtype of the base weight; None of a quantised one."""
        dtype: torch.dtype = self.get_base_layer().weight.dtype  # type: ignore[assignment]
        return dtype if dtype.is_floating_point else None

    def base_on_meta(self) -> bool:
        """Whether the base weight has no values."""
        weight = self.get_base_layer().weight
        return isinstance(weight, Tensor) and weight.is_meta

    def initial_values(self, adapter_name: str, config: MethodFields) -> dict[str, Tensor]:
        """Initial cores of an adapter by key, as its configuration wants them."""
        weight = self.oriented_base_weight().detach() if config.uses_weight else None
        return config.initial_cores(self.update(adapter_name).declared, weight)

    @torch.no_grad()
    def factors(self, adapter_name: str, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """Two factors whose product is an adapter's update."""
        update = self.update(adapter_name)
        found = update.weight_network().cut_factors(update.cores, update.anchor)
        if found is None:
            delta = update.delta()
            return delta, torch.eye(self.in_features, dtype=delta.dtype, device=delta.device)
        return found

    def first_update(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """The update of an adapter and the base weight, to compare; None where it has none."""
        update = self.update(adapter_name)
        return (update.delta(), self.oriented_base_weight()) if update.additive else None

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
        return self._named(adapter).view()

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
        if self.rows is not None:
            groups = [
                (index, self.update(name) if name in self.held else None)
                for name, index in self.rows.groups(x)
            ]
            return mixed_forward(self.base_layer, groups, x, *args, **kwargs)
        return adapted_forward(*self.adapted, x, *args, **kwargs)

    @property
    def adapted(self) -> tuple[nn.Module, list[Update]]:
        """The base layer, and the updates of the active adapters; none where they are merged."""
        if self.merged:
            return self.base_layer, []
        active = [self.update(name) for name in self.active_adapters if name in self.held]
        return self.base_layer, active

    @property
    def replaces(self) -> bool:
        """Whether merging sets the base layer aside, since its weight cannot take the update.

        That is so for quantised weights, for weights that are computed from others (weight norm),
        and for those that another module has too.
        """
        base = self._set_aside[0] if self._set_aside else self.get_base_layer()
        return self.is_quantized or self.tied or not is_plain(base)

    def put(self, merged: Merged) -> None:
        """Take up a merged weight; a base layer that cannot take it is set aside."""
        if merged.layer is not None:
            self._set_aside = self._set_aside or [self.base_layer]
            self.base_layer = merged.layer
        else:
            self.set_base_weight(merged.weight)

    @torch.no_grad()
    def merged_with(self, names: Sequence[str], *, check: bool = False) -> Merged:
        """What merging more adapters makes of the base layer, which is left as it is.

        Raises
        ------
        TypeError, ValueError
            As :meth:`merge` does.
        """
        base = self._set_aside[0] if self._set_aside else self.get_base_layer()
        if not self.is_quantized:
            _check_product(base)
        if not self.replaces:
            weight = self.get_base_weight()
            delta = self._sum_of(names, weight.device)
            total = weight.to(computing([weight, delta])) + self._oriented(delta)
            _check_finite(total, names, check)
            merged = total.to(weight.dtype)
            if merged.dtype == total.dtype:
                return Merged(merged)
            forms = {str(merged.dtype): merged}
            return Merged(merged, rounding=[rounding_errors(forms, total, self._oriented(delta))])
        dense = self.dense_of(base)
        delta = self._sum_of(names, dense.device)
        total = dense.to(computing([dense, delta])) + delta
        if self.merged_adapters:
            total += self._sum_of(self.merged_adapters, dense.device)
        _check_finite(total, names, check)
        into = self.merging if self.is_quantized else MergeInto(dense.dtype)
        made = merged_layer(self, base, total, into)
        forms = {str(into.dtype): total.to(into.dtype)}
        if into.requantize:
            forms["quantised"] = self.dense_of(made)
        exact = not into.requantize and into.dtype == total.dtype
        return Merged(total, made, [] if exact else [rounding_errors(forms, total, delta)])

    @torch.no_grad()
    def take_back(self, names: Sequence[str]) -> None:
        """Unmerge the adapters `names` only."""
        left = [name for name in self.merged_adapters if name not in names]
        if len(left) == len(self.merged_adapters):
            return
        self.rounding = []
        if not self._set_aside:
            weight = self.get_base_weight()
            delta = self._oriented(self._sum_of(names, weight.device))
            total = weight.to(computing([weight, delta])) - delta
            self.set_base_weight(total.to(weight.dtype))
            self.merged_adapters = left
            return
        self.base_layer = self._set_aside.pop()
        self.merged_adapters = []
        if left:
            self.merge(adapter_names=left)

    def _apply(self, *args: Any, **kwargs: Any) -> NetworkLayer:
        """Move and cast what is set aside too."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for base in self._set_aside:
            base._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _sum_of(self, names: Sequence[str], device: torch.device) -> Tensor:
        """The dense updates of some adapters in one, (out_features, in_features)."""
        first, *others = [self.update(name).delta().to(device) for name in names]
        for delta in others:
            first = first + delta
        return first

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can factorise the update: if it is one of the weight."""
        return adapter_name not in self.held or self.update(adapter_name).additive

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.mT if is_transposed(self.get_base_layer()) else weight


def _check_product(base: nn.Module) -> None:
    if not only_multiplies(base):
        raise ValueError(
            f"this {type(base).__name__} does more than multiply by its weight (hooks, or a "
            "forward pass of its own), so the update is not one of its weight and cannot be "
            "merged; remove the hooks, or leave the adapter unmerged"
        )


def _check_finite(total: Tensor, names: Sequence[str], check: bool) -> None:
    if check and not torch.isfinite(total).all():
        raise ValueError(
            f"NaNs detected in the merged weights. The adapter {' or '.join(names)} seems to be "
            "broken: its sum with the base weight is not finite; nothing was merged"
        )


def _features(layer: nn.Module) -> tuple[int, int]:
    """Output and input width of a supported layer; TypeError for any other."""
    widths = features(layer)
    if widths is None:
        instead = ""
        if isinstance(layer, nn.Embedding):
            instead = " and name it in modules_to_save, or tokens of it in trainable_token_indices"
        raise TypeError(
            f"cannot adapt a {type(layer).__name__}: only torch.nn.Linear, transformers' Conv1D "
            "and quantised linear layers are supported (not torch.nn.MultiheadAttention's output, "
            "whose weight is used without its layer); leave it out of target_modules"
            f"{instead}"
        )
    return widths
