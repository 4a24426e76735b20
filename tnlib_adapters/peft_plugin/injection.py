"""Putting an adapter into a model, whole or not at all: what it starts from, and how it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib_adapters.base_model.offloaded import onloaded
from tnlib_adapters.layers.stored_cores import ANCHOR, StoredCores
from tnlib_adapters.peft_plugin.adapted_experts import put_experts_back
from tnlib_adapters.peft_plugin.core_store import AdapterPart
from tnlib_adapters.peft_plugin.layer import NetworkLayer
from tnlib_adapters.peft_plugin.modules_to_save import restore_parts
from tnlib_adapters.peft_plugin.naming import naming
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer
from tnlib_adapters.progress import is_shown

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields


class Before:
    """What a model and a configuration are like before an adapter is injected."""

    def __init__(self, model: nn.Module, config: MethodFields, targeted: list[str]) -> None:
        self.config = config
        self.fields = dict(vars(config))
        self.targeted = targeted
        self.trainable = [(value, value.requires_grad) for value in model.parameters()]
        self.active = {
            id(module): (module.active_adapters, module.disable_adapters)
            for module in model.modules()
            if isinstance(module, WeightLayer)
        }
        self.known = "peft_config" in vars(model)

    def restore(self, model: nn.Module, adapter_name: str) -> None:
        """Take the adapter out of the model, and put everything back as it was."""
        for name, part in list(model.named_modules()):
            if not isinstance(part, AdapterPart):
                continue
            if adapter_name in part.held:
                del part.held[adapter_name]
            if not part.held:
                parent, _, child = name.rpartition(".")
                if isinstance(part, NetworkLayer):
                    setattr(model.get_submodule(parent), child, part.base_layer)
                else:
                    delattr(model.get_submodule(parent), child)
            elif isinstance(part, WeightLayer) and id(part) in self.active:
                part._active_adapter, part._disable_adapters = self.active[id(part)]
        put_experts_back(model)
        restore_parts(model, adapter_name)
        if not self.known:
            vars(model).pop("peft_config", None)
        vars(self.config).clear()
        vars(self.config).update(self.fields)
        for value, requires_grad in self.trainable:
            if value.requires_grad != requires_grad:
                value.requires_grad_(requires_grad)


def check_name(adapter_name: str) -> None:
    """Raise ValueError if an adapter cannot have this name."""
    if adapter_name == "__base__":
        raise ValueError("adapter_name='__base__' is PEFT's name of the model without adapters")
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict(), adapter_name):
        raise ValueError(
            f"adapter_name={adapter_name!r}: torch has no module of that name; take a name "
            "without dots that is no method of a dictionary"
        )


def refuse_second(model: nn.Module, adapter_name: str) -> None:
    """Raise ValueError if the model has an adapter of this name already."""
    for name, part in model.named_modules():
        if isinstance(part, AdapterPart) and adapter_name in part.held:
            raise ValueError(
                f"the model has an adapter {adapter_name!r} already, at {name}; give the new one "
                "another name (adapter_name='second'), or take the old one out: "
                "model = peft_model.unload()"
            )


def initialise(
    layers: Sequence[tuple[str, WeightLayer]], adapter_name: str, config: MethodFields
) -> None:
    """Set the initial values of an adapter's cores.

    A configuration that was read from a file says "saved": the file has the values. An adapter
    that is added by it, and not loaded, starts where the saved one did: what is frozen is that of
    an adapter of the same declaration, where the layer has one. So trained parameters that are
    copied from there, as TRL does for its reference model, mean the same function.
    """
    again = config.init_weights == "saved"
    if again:
        config = copy.copy(config)
        config.init_weights = True
    work = sum(layer.out_features * layer.in_features for _, layer in layers)
    shown = is_shown(config.progressbar, work)
    for name, layer in tqdm(layers, desc="initialising cores", disable=not shown, unit="layer"):
        update = layer.stored(adapter_name)
        twin = _twin(layer, adapter_name) if again else None
        with naming(name), torch.no_grad(), onloaded(layer.get_base_layer()):
            if _on_meta(update, layer):
                continue
            if twin is not None and twin.anchor is not None:
                update.set_initial(
                    twin.anchor | {ANCHOR + key: v for key, v in twin.anchor.items()}
                )
                continue
            values = layer.initial_values(adapter_name, config.for_weight(name))
            if twin is not None:
                values |= {
                    core.key: twin.cores[core.key] for core in twin.network.cores if core.frozen
                }
            update.set_initial(values)
            if name == layers[0][0] and config.init_weights is True:
                _check_start(layer.first_update(adapter_name), config)


def _check_start(first: tuple[Tensor, Tensor] | None, config: MethodFields) -> None:
    """Warn if a method of a user's own does not start as the base model, with how far off."""
    own = not type(config).__module__.startswith("tnlib_adapters.")
    if own and first is not None and first[0].any():
        delta, weight = first
        size = float(torch.linalg.norm(delta) / torch.linalg.norm(weight.float()).clamp_min(1e-30))
        warnings.warn(
            f"{config.method} does not start as the base model: its first update is {size:.2g} of "
            "the weight (Frobenius norms); let one core start at zero, or declare the network "
            "anchored",
            stacklevel=6,
        )


def _twin(layer: WeightLayer, adapter_name: str) -> StoredCores | None:
    """Another adapter of the layer with the same declaration."""
    network = layer.stored(adapter_name).network
    for name in layer.held:
        other = layer.stored(name)
        same = other.network.shapes == network.shapes and other.network.anchored == network.anchored
        if name != adapter_name and same:
            return other
    return None


def _on_meta(update: StoredCores, layer: WeightLayer) -> bool:
    return layer.base_on_meta() or any(value.is_meta for value in update.cores.values())
