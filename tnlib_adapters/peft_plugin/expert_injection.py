"""Adapters of experts put into a model, and where what they share is held."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import nn

from tnlib_adapters.peft_plugin import targets
from tnlib_adapters.peft_plugin.adapted_experts import AdaptedExperts
from tnlib_adapters.peft_plugin.core_store import STORE, CoreStore
from tnlib_adapters.peft_plugin.declarations import declared
from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer
from tnlib_adapters.peft_plugin.expert_targets import ExpertTarget, expert_targets
from tnlib_adapters.peft_plugin.fields import matches
from tnlib_adapters.peft_plugin.naming import naming
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer
from tnlib_adapters.peft_plugin.weighted_adapters import Summing

if TYPE_CHECKING:
    from tnlib_adapters.networks.declaration import Declared
    from tnlib_adapters.peft_plugin.fields import MethodFields


class AdaptingExperts(Summing):
    """A tuner that adapts weights of experts too."""

    expert_cls: type[ExpertLayer]
    store_cls: type[CoreStore]

    def _inject_parameters(
        self, peft_config: Any, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Adapt the weights of experts, and name them."""
        found = expert_targets(peft_config, model)
        for name, target in found.items():
            with init_empty_weights() if low_cpu_mem_usage else nullcontext(), naming(name):
                place = target.parameter.module
                experts = model.get_submodule(place)
                if not isinstance(experts, AdaptedExperts):
                    owner, _, child = place.rpartition(".")
                    experts = AdaptedExperts(experts).train(experts.training)
                    setattr(model.get_submodule(owner), child, experts)
                self._adapt_experts(peft_config, adapter_name, experts, target)
        # PEFT is about to look for the names of patterns among those of modules.
        for kind in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(peft_config, kind) or {}
            left = {key: v for key, v in pattern.items() if not any(matches(key, n) for n in found)}
            setattr(peft_config, kind, left or None)
        return [*found]

    def _adapt_experts(
        self,
        config: MethodFields,
        adapter_name: str,
        experts: AdaptedExperts,
        target: ExpertTarget,
    ) -> None:
        """Give one weight of experts an adapter."""
        site = target.site
        key = site.name.rsplit(".", 1)[-1]
        layer = experts.layers.get(key)
        made = layer or self.expert_cls(experts.base_layer, target.parameter)
        if type(made) is not self.expert_cls:
            raise ValueError(
                f"is adapted by {type(made).__name__} already; a model takes adapters of one "
                "method at a time"
            )
        targets.check_dtype(made.values)
        if layer is None:
            made.set_adapter(self.active_adapters)
        network = declared(config, site)
        made.add_adapter(
            adapter_name,
            network,
            self._store(network),
            config.inference_mode,
            self._device(made),
            config.strength(site),
            target.chosen,
        )
        if layer is None:
            if adapter_name not in self.active_adapters:
                made.requires_grad_(False)
            setattr(experts, key, made.train(experts.training))

    def _device(self, layer: WeightLayer) -> torch.device:
        """Where a layer computes; PEFT takes off-loaded weights from their hooks while it loads."""
        device = layer.place()
        places = getattr(self.model, "hf_device_map", None)
        if device.type != "meta" or not places:
            return device
        used = [place for place in places.values() if place not in ("cpu", "disk")]
        return torch.device(used[0] if used else "cpu")

    def _store(self, network: Declared) -> CoreStore | None:
        """Where the cores that a network shares are; None where it has none."""
        if not any(core.group for core in network.cores):
            return None
        store: CoreStore | None = getattr(self.model, STORE, None)
        if store is None:
            store = self.store_cls()
            setattr(self.model, STORE, store)
        return store
