"""A weight of the model with the updates of its adapters, as PEFT switches them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from tnlib_adapters.layers.expert_update import ExpertUpdate
from tnlib_adapters.layers.shared_cores import SharedCores
from tnlib_adapters.layers.update import Update
from tnlib_adapters.peft_plugin.core_store import AdapterPart, CoreStore
from tnlib_adapters.peft_plugin.merged_layer import Merged, MergeInto, RoundingErrors

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields


class WeightLayer(AdapterPart, BaseTunerLayer):
    """Base of the layers whose weight is adapted, and of the weights of experts.

    Cores that an adapter shares with other weights are in a :class:`CoreStore`; whatever PEFT does
    to the adapter of this weight is done to them too.
    """

    attribute = "update"
    out_features: int
    in_features: int

    def __init_subclass__(cls, *, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(prefix=prefix, **kwargs)
        if prefix is not None:
            cls.adapter_layer_names = (prefix + cls.attribute,)
            cls.other_param_names = ()

    def __init__(self) -> None:
        super().__init__()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # What the casts of merging took; what merging makes of a weight that cannot take the
        # update; and whether another module has the same weight.
        self.rounding: list[RoundingErrors] = []
        self.merging = MergeInto()
        self.tied = False
        # Whether its adapters count more or less for a while.
        self.rescaled = False
        # The adapter of every row, while a mixed batch is computed.
        self.rows: Any = None
        object.__setattr__(self, "_store", None)

    def hold(self, adapter_name: str, made: Update | ExpertUpdate, inference_mode: bool) -> None:
        """Take up an update; the tuner sets its values."""
        self.held[adapter_name] = made.train(self.training)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def shared_cores(self, adapter_name: str, store: CoreStore | None) -> SharedCores | None:
        """Where an adapter's shared cores are, in a store that is to follow what is done here."""
        if store is None:
            return None
        object.__setattr__(self, "_store", store)
        return store.cores(adapter_name)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones; they train unless in inference mode."""
        super().set_adapter(adapter_names, inference_mode)
        for name, shared in self._shared():
            shared.requires_grad_(name in self.active_adapters and not inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Use the active adapters, or none."""
        super().enable_adapters(enabled)
        if not enabled:
            for _, shared in self._shared():
                shared.requires_grad_(False)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train the values of some adapters, or freeze them."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name, shared in self._shared():
            if name in names:
                shared.requires_grad_(requires_grad)

    def requires_grad_(self, requires_grad: bool = True) -> WeightLayer:
        """Train everything in the layer and what it shares, or freeze it."""
        super().requires_grad_(requires_grad)
        for _, shared in self._shared():
            shared.requires_grad_(requires_grad)
        return self

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, from all layers in turn as PEFT does; the first takes its store."""
        store: Any = self._store
        if store is not None and adapter_name in store.held:
            del store.held[adapter_name]
        super().delete_adapter(adapter_name)

    def _shared(self) -> Iterator[tuple[str, SharedCores]]:
        """The shared cores of every adapter that has some."""
        for name, update in self.held.items():
            if update.shared is not None:
                yield name, update.shared  # type: ignore[misc]

    def stored(self, adapter_name: str) -> Update | ExpertUpdate:
        """The cores of one adapter."""
        return self.held[adapter_name]  # type: ignore[return-value]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an update; unlike PEFT's own layers, never cast it to the base layer's dtype.

        Shared cores are moved where a device is named: other layers know other ones.
        """
        target = self.place() if device is None else device
        update = self.stored(adapter_name)
        moved = [update] if device is None or update.shared is None else [update, update.shared]
        for module in moved:
            if target.type != "meta" and not _on_meta(module):
                module.to(target)

    def place(self) -> torch.device:
        """Where the weight is used."""
        raise NotImplementedError

    def base_dtype(self) -> torch.dtype | None:
        """Floating dtype of the base weight; None of a quantised one."""
        raise NotImplementedError

    def base_on_meta(self) -> bool:
        """Whether the base weight has no values."""
        raise NotImplementedError

    def initial_values(self, adapter_name: str, config: MethodFields) -> dict[str, Tensor]:
        """Initial cores of an adapter by key, as its configuration wants them."""
        raise NotImplementedError

    @property
    def base_parameter(self) -> Any:
        """The parameter that is adapted; None where the weight is computed."""
        raise NotImplementedError

    @property
    def is_quantized(self) -> bool:
        """Whether the base weight is quantised, or was before something was merged into it."""
        return False

    def check_mergeable(self, adapter_name: str) -> None:
        """Raise TypeError or ValueError if an adapter cannot be merged."""
        raise NotImplementedError

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
        TypeError
            If an adapter is not an update of the weight.
        ValueError
            With `safe_merge`, if the merged weight would not be finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.held]
        if names:
            self.check_not_rescaled()
            merged = self.merged_with(names, check=safe_merge)
            self.put(merged)
            self.rounding += merged.rounding
            self.merged_adapters += names

    def check_not_rescaled(self) -> None:
        """Raise ValueError while adapters count more or less than they will afterwards."""
        if self.rescaled:
            raise ValueError(
                "adapters are rescaled for a while; merge and sum them outside of "
                "rescale_adapter_scale"
            )

    def unmerge(self) -> None:
        """Take all merged updates out of the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self.take_back(self.merged_adapters)

    def put(self, merged: Merged) -> None:
        """Take up a merged weight."""
        raise NotImplementedError

    def merged_with(self, names: Sequence[str], *, check: bool = False) -> Merged:
        """What merging more adapters makes of the weight, which is left as it is."""
        raise NotImplementedError

    def take_back(self, names: Sequence[str]) -> None:
        """Unmerge some adapters only."""
        raise NotImplementedError

    def factors(self, adapter_name: str, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """Two factors whose product is an adapter's update, of one expert where there are some.

        Exact ones of a small rank where the network has such, else the update and an identity.
        """
        raise NotImplementedError

    def first_update(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """The update of an adapter and the base weight, to compare; None where it has none."""
        raise NotImplementedError


def _on_meta(module: nn.Module) -> bool:
    return any(value.device.type == "meta" for value in module.state_dict().values())
