"""The one PEFT tuner of all network methods; it knows none of them by name.

PEFT builds the layers one by one and loads saved values afterwards. The tuner therefore only
allocates cores while layers are injected, and sets their initial values when all are in place:
with a progress bar where it takes long, and not at all for an adapter that is being loaded.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import get_quantization_kwargs
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib_adapters.fourbit.foreign import prevent_repacking
from tnlib_adapters.fourbit.notes import described, difference
from tnlib_adapters.plans import plans
from tnlib_adapters.plugin import targets
from tnlib_adapters.plugin.extras import restore_parts
from tnlib_adapters.plugin.files import check_tensors
from tnlib_adapters.plugin.layer import STORE, AdapterPart, CoreStore, NetworkLayer
from tnlib_adapters.plugin.merge_tuner import Merging
from tnlib_adapters.plugin.naming import naming
from tnlib_adapters.sites import Site, find_sites

if TYPE_CHECKING:
    from tnlib_adapters.plugin.config import NetworkConfig

# Weights to initialise from which a progress bar is shown.
_LARGE = 50_000_000


class NetworkTuner(Merging):
    """Injects a :class:`NetworkLayer` for every target. Subclasses name prefix and classes."""

    tuner_layer_cls = AdapterPart
    layer_cls: type[NetworkLayer]
    store_cls: type[CoreStore]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Create the layers and set the initial values of their cores, or change nothing.

        Warns of every entry of ``target_modules`` that matched nothing.
        """
        config: NetworkConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        entries = config.target_modules
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._sites: dict[str, Site] | None = None
        prevent_repacking(model)
        targets.check_saved(config.modules_to_save, model)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if config.file_shapes and config.init_weights in ("saved", "random"):
                check_tensors(config.file_shapes, model, adapter_name)
            config.file_shapes = {}  # type: ignore[misc]
            self._compare_bases(model, adapter_name)
            self._initialise(model, adapter_name)
        except Exception as error:
            self._withdraw(model, adapter_name)
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)
            hint = targets.overlooked(error, model, entries)
            if hint:
                raise ValueError(f"{error}{hint}") from error
            raise
        finally:
            self._sites = None
        if config.init_weights != "saved":
            targets.warn(targets.report(entries, self._names(model, adapter_name)), model, entries)
            targets.warn_unsaved(config.modules_to_save, model)

    def target_report(self, adapter_name: str = "default") -> dict[str, list[str]]:
        """Names of the modules that every entry of an adapter's ``target_modules`` matched."""
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"there is no adapter {adapter_name!r} here; there are {[*self.peft_config]}"
            )
        config: NetworkConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        return targets.report(config.target_modules, self._names(self.model, adapter_name))

    def print_plan(self, tokens: int = 512) -> None:
        """Print how the updates are applied, and why; see :func:`tnlib_adapters.plans`."""
        print(plans(self.model, tokens))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cores are made in float32; without autocast they take the base layer's dtype."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        layers = [layer for _, layer in self._layers(self.model, adapter_name)]
        weights: list[Any] = [layer.get_base_layer().weight for layer in layers]
        floating = [weight.dtype for weight in weights if weight.dtype.is_floating_point]
        if floating:
            # One dtype for all: layers meet in the cores that they share.
            widest = floating[0]
            for dtype in floating:
                widest = torch.promote_types(widest, dtype)
            for part in self.model.modules():
                if isinstance(part, AdapterPart) and adapter_name in part.held:
                    part.held[adapter_name].to(widest)

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: NetworkConfig, model_config: dict[str, Any]
    ) -> NetworkConfig:
        """Choose targets where none are named."""
        targets.choose(peft_config, self.model)
        return peft_config

    def _prepare_model(  # type: ignore[override]
        self, peft_config: NetworkConfig, model: nn.Module
    ) -> None:
        peft_config.prepare(model)

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
        with naming(current_key):
            layer = target
            if not isinstance(target, self.layer_cls):
                if isinstance(target, AdapterPart):
                    raise ValueError(
                        f"is adapted by {type(target).__name__} already; a model takes adapters "
                        "of one method at a time"
                    )
                layer = self.layer_cls(target, **get_quantization_kwargs(self.model))
                layer.set_adapter(self.active_adapters)
            assert isinstance(layer, NetworkLayer)
            if self._sites is None:
                self._sites = find_sites(self.model)
            site = self._sites.get(current_key)
            network = peft_config.network(
                site or Site(current_key, layer.out_features, layer.in_features)
            )
            shared = None
            if any(core.group for core in network.cores):
                shared = self._store().cores(adapter_name)
            layer.add_adapter(adapter_name, network, shared, peft_config.inference_mode)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _store(self) -> CoreStore:
        store: CoreStore | None = getattr(self.model, STORE, None)
        if store is None:
            store = self.store_cls()
            store.set_adapter(self.active_adapters)
            setattr(self.model, STORE, store)
        return store

    def _initialise(self, model: nn.Module, adapter_name: str) -> None:
        config: NetworkConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        if config.init_weights == "saved":
            return
        layers = self._layers(model, adapter_name)
        work = sum(layer.out_features * layer.in_features for _, layer in layers)
        shown = work >= _LARGE if config.progressbar is None else config.progressbar
        for name, layer in tqdm(layers, desc="initialising cores", disable=not shown, unit="layer"):
            update = layer.update(adapter_name)
            cores = (*update.cores.values(), layer.get_base_layer().weight)
            if not any(core.device.type == "meta" for core in cores):
                weight: Tensor | None = None
                with naming(name), torch.no_grad():
                    if config.uses_weight:
                        weight = layer.oriented_base_weight().detach()
                    update.start(config.initial_cores(update.network, weight))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Translate a file's names; refuse cores that are not this adapter's."""
        cores = {k: tuple(v.shape) for k, v in state_dict.items() if f".{cls.prefix}" in k}
        check_tensors(cores, model, adapter_name, cores_only=True)
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        return mapped

    def _compare_bases(self, model: nn.Module, adapter_name: str) -> None:
        """Note how the base is in 4 bits, or say what differs from the one of a saved adapter."""
        config: NetworkConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        layers = self._layers(model, adapter_name)
        bases = [described(layer.get_base_layer()) for _, layer in layers]
        base = next((found for found in bases if found is not None), None)
        if config.init_weights != "saved":
            for name, layer in layers:
                network = layer.update(adapter_name).network
                if base is not None and getattr(network, "residual", False):
                    raise ValueError(
                        f"{name}: residual=True over a base in 4 bits would take theta_0 out of "
                        "weights that are rounded already. Adapt the model in full precision and "
                        "quantise it then, by tnlib_adapters.quantization.quantize_base(model); "
                        "or leave residual out: the update is then added to the 4-bit base as is"
                    )
            config.base_quantization = base
        elif config.base_quantization is not None:
            text = difference(config.base_quantization, base)
            if text:
                warnings.warn(text, stacklevel=3)

    def _withdraw(self, model: nn.Module, adapter_name: str) -> None:
        """Remove what an injection that failed has left in the model."""
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
        restore_parts(model, adapter_name)
        self.peft_config.pop(adapter_name, None)
