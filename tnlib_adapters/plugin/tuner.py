"""The one PEFT tuner of all network methods; it knows none of them by name.

PEFT builds the layers one by one and loads saved values afterwards. The tuner therefore only
allocates cores while layers are injected, and sets their initial values when all are in place:
with a progress bar where it takes long, and not at all for an adapter that is being loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import get_quantization_kwargs
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib_adapters.plugin.config import NetworkConfig
from tnlib_adapters.plugin.layer import NetworkLayer
from tnlib_adapters.update import Update

# Weights to initialise from which a progress bar is shown.
_LARGE = 50_000_000


class NetworkTuner(BaseTuner):
    """Injects a :class:`NetworkLayer` for every target. Subclasses name prefix and layer class."""

    tuner_layer_cls: type[NetworkLayer]
    target_module_mapping: dict[str, list[str]] = {  # noqa: RUF012 (declared so by PEFT)
        model: list(names)
        for model, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
    }

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Create the layers and set the initial values of their cores, or change nothing."""
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._initialise(model, adapter_name)
        except Exception:
            self._withdraw(model, adapter_name)
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)
            raise

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge in every layer; with `safe_merge` look at all updates before the first is."""
        if safe_merge:
            for name in adapter_names or self.active_adapters:
                for key, layer in self._layers(self.model, name):
                    with _naming(key):
                        layer.check_update(name)
        super().merge_adapter(adapter_names, safe_merge)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cores are made in float32; without autocast they take the base layer's dtype."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for _, layer in self._layers(self.model, adapter_name):
                dtype = layer.get_base_layer().weight.dtype
                if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
                    layer.updates[adapter_name].to(dtype)

    def _layers(self, model: nn.Module, adapter_name: str) -> list[tuple[str, NetworkLayer]]:
        return [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, self.tuner_layer_cls) and adapter_name in layer.updates
        ]

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: NetworkConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if parameter_name is not None:
            raise ValueError(f"{current_key}.{parameter_name}: bare parameters are not supported")
        layer = target
        if not isinstance(target, self.tuner_layer_cls):
            with _naming(current_key):
                layer = self.tuner_layer_cls(target, **get_quantization_kwargs(self.model))
            layer.set_adapter(self.active_adapters)
        assert isinstance(layer, NetworkLayer)
        network = peft_config.network(layer.site(current_key))
        layer.add_adapter(adapter_name, network, peft_config.inference_mode)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _initialise(self, model: nn.Module, adapter_name: str) -> None:
        config = self.peft_config[adapter_name]
        assert isinstance(config, NetworkConfig)
        layers = self._layers(model, adapter_name)
        work = sum(layer.out_features * layer.in_features for _, layer in layers)
        shown = work >= _LARGE if config.progressbar is None else config.progressbar
        for name, layer in tqdm(layers, desc="initialising cores", disable=not shown, unit="layer"):
            update = layer.updates[adapter_name]
            assert isinstance(update, Update)
            if not _is_meta(update) and not _is_meta(layer.get_base_layer()):
                with _naming(name):
                    self._start(config, layer, update)

    @staticmethod
    def _start(config: NetworkConfig, layer: NetworkLayer, update: Update) -> None:
        if config.init_weights == "saved":
            return
        weight: Tensor = layer.oriented_base_weight().detach()
        with torch.no_grad():
            update.start(config.initial_cores(update.network, weight))

    def _withdraw(self, model: nn.Module, adapter_name: str) -> None:
        """Remove what an injection that failed has left in the model."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, self.tuner_layer_cls):
                if adapter_name in layer.updates:
                    del layer.updates[adapter_name]
                if not layer.updates:
                    parent, _, child = name.rpartition(".")
                    setattr(model.get_submodule(parent), child, layer.base_layer)
        self.peft_config.pop(adapter_name, None)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the module's name in front of an error about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _is_meta(module: nn.Module) -> bool:
    return any(value.device.type == "meta" for value in module.parameters())
