"""The one PEFT tuner of all network methods; it knows none of them by name.

PEFT builds the layers one by one and loads saved values afterwards. The tuner therefore only
allocates cores while layers are injected, and sets their initial values when all are in place:
with a progress bar where it takes long, and not at all for an adapter that is being loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import get_quantization_kwargs
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from tnlib_adapters.base_model.adaptable import unusable
from tnlib_adapters.base_model.linear_modules import check_output
from tnlib_adapters.base_model.peft_names import PREFIX
from tnlib_adapters.base_model.sites import Site, find_sites
from tnlib_adapters.fourbit.bitsandbytes import prevent_repacking
from tnlib_adapters.layers.strategy_report import plans
from tnlib_adapters.networks.facts import facts
from tnlib_adapters.peft_plugin import targets
from tnlib_adapters.peft_plugin.adapter_file_checks import (
    check_file,
    check_loaded,
    is_resized,
    own_names,
    plain_key,
)
from tnlib_adapters.peft_plugin.core_store import STORE, AdapterPart
from tnlib_adapters.peft_plugin.declarations import declared
from tnlib_adapters.peft_plugin.expert_injection import AdaptingExperts
from tnlib_adapters.peft_plugin.injection import Before, check_name, initialise, refuse_second
from tnlib_adapters.peft_plugin.layer import NetworkLayer
from tnlib_adapters.peft_plugin.mixed_batches import mixed_batch
from tnlib_adapters.peft_plugin.naming import naming
from tnlib_adapters.peft_plugin.trained_norms import narrow_norms, train_norms_apart
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer
from tnlib_adapters.quantization.metadata import described, difference

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields


class NetworkTuner(AdaptingExperts):
    """Injects a :class:`NetworkLayer` for every target. Subclasses name prefix and classes."""

    tuner_layer_cls = WeightLayer
    layer_cls: type[NetworkLayer]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        check_name(adapter_name)
        refuse_second(model, adapter_name)
        # Of adapters whose file is not read yet: what the model was like without them.
        self._loading: dict[str, Before] = {}
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Create the layers and set the initial values of their cores, or change nothing.

        Warns of every entry of ``target_modules`` that matched nothing.
        """
        config: MethodFields = self.peft_config[adapter_name]  # type: ignore[assignment]
        entries = config.target_modules
        check_name(adapter_name)
        before = Before(model, config, [*self.targeted_module_names])
        file_shapes, config.file_shapes = config.file_shapes, None  # type: ignore[misc]
        patterns = config.rank_pattern, config.alpha_pattern
        self._sites: dict[str, Site] | None = None
        self._unusable = unusable(model)
        self._left_out: dict[str, str] = {}
        try:
            prevent_repacking(model)
            targets.check_saved(config.modules_to_save, model)
            if state_dict is not None:
                names = {plain_key(name): value for name, value in state_dict.items()}
                state_dict = names if self._names_layers(names) else None
                if state_dict is None and not (entries or config.target_parameters):
                    raise ValueError(
                        "state_dict does not tell which layers are adapted, since all its cores "
                        "are shared; give target_modules, as in the saved configuration"
                    )
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
            config.rank_pattern, config.alpha_pattern = patterns
            adapted = self._names(model, adapter_name)
            if entries == targets.ALL_LINEAR:
                targets.forget_left_out(config, adapted, self._left_out)
            elif config.init_weights != "saved":  # files of earlier versions name what is left out
                targets.check_left_out(entries, adapted, self._left_out)
            train_norms_apart(model, adapter_name, scaled=config.rate_scaling)
            if not autocast_adapter_dtype:
                narrow_norms(model, adapter_name)
            if file_shapes is not None:
                targets.check_compiled(model)
            if file_shapes and config.init_weights in ("saved", "random"):
                check_file(file_shapes, model, adapter_name)
            fresh = file_shapes is None or config.init_weights != "saved"
            self._compare_bases(model, adapter_name, fresh=fresh)
            if fresh:
                initialise(self._layers(model, adapter_name), adapter_name, config)
        except BaseException as error:
            self._withdraw(model, adapter_name, before)
            self.peft_config.pop(adapter_name, None)
            if self._left_out and isinstance(error, ValueError):
                targets.check_left_out(entries, [], self._left_out)
            hint = targets.overlooked(error, model, entries)
            if hint:
                raise ValueError(f"{error}{hint}") from error
            raise
        finally:
            self._sites = None
        # A model that is adapted to be evaluated is about to be loaded.
        if file_shapes is not None or config.inference_mode:
            self._loading[adapter_name] = before
        if config.init_weights != "saved":
            targets.warn(targets.report(entries, adapted), model, entries)
            targets.warn_unsaved(config.modules_to_save, model)
            targets.warn_left_out(self._left_out)

    def target_report(self, adapter_name: str = "default") -> dict[str, list[str]]:
        """Names of the modules that every entry of an adapter's ``target_modules`` matched."""
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"there is no adapter {adapter_name!r} here; there are {[*self.peft_config]}"
            )
        config: MethodFields = self.peft_config[adapter_name]  # type: ignore[assignment]
        return targets.report(config.target_modules, self._names(self.model, adapter_name))

    def print_plan(self, tokens: int = 512) -> None:
        """Print how the updates are applied, and why; see :func:`tnlib_adapters.plans`."""
        print(plans(self.model, tokens))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Let every row of a batch have its adapter, where ``adapter_names=`` says which."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        with mixed_batch(self.model, names, [*self.peft_config], *args, **kwargs):
            yield

    def _check_target_module_exists(  # type: ignore[override]
        self, peft_config: MethodFields, key: str
    ) -> Any:
        """Leave out what matches and would not train, and what adapters have put into the model."""
        if key == STORE or key.startswith(f"{STORE}."):
            return False
        matched = super()._check_target_module_exists(peft_config, key)
        reason = self._unusable.get(plain_key(key))
        if reason is None or not matched:
            return matched
        self._left_out[key] = reason
        return False

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Freeze the base model: neither layers nor the shared cores, which PEFT does not know."""
        store: nn.Module | None = getattr(model, STORE, None)
        cores = [] if store is None else [(core, core.requires_grad) for core in store.parameters()]
        super()._mark_only_adapters_as_trainable(model)
        for core, requires_grad in cores:
            core.requires_grad_(requires_grad)

    def _names_layers(self, state_dict: dict[str, Tensor]) -> bool:
        """Whether the names of saved values tell the layers: not those of shared cores alone."""
        return any(f".{self.prefix}" in name and f"{STORE}." not in name for name in state_dict)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cores are made in float32; without autocast they take the base layer's dtype."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        narrow_norms(self.model, adapter_name)
        layers = [layer for _, layer in self._layers(self.model, adapter_name)]
        dtypes = [layer.base_dtype() for layer in layers]
        floating = [dtype for dtype in dtypes if dtype is not None]
        if floating:
            # One dtype for all: layers meet in the cores that they share.
            widest = floating[0]
            for dtype in floating:
                widest = torch.promote_types(widest, dtype)
            for part in self.model.modules():
                if isinstance(part, AdapterPart) and adapter_name in part.held:
                    part.held[adapter_name].to(widest)

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: MethodFields, model_config: dict[str, Any]
    ) -> MethodFields:
        """Choose targets where none are named."""
        targets.choose(peft_config, self.model)
        return peft_config

    def _prepare_model(  # type: ignore[override]
        self, peft_config: MethodFields, model: nn.Module
    ) -> None:
        peft_config.prepare(model)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: MethodFields,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        with naming(current_key):
            layer = target
            targets.check_weight(target)
            if not isinstance(target, self.layer_cls):
                if isinstance(target, NetworkLayer):
                    raise ValueError(
                        f"is adapted by {type(target).__name__} already; a model takes adapters "
                        "of one method at a time"
                    )
                layer = self.layer_cls(target, **get_quantization_kwargs(self.model))
                layer.set_adapter(self.active_adapters)
            assert isinstance(layer, NetworkLayer)
            if layer is not target:
                check_output(target)
                layer.train(target.training)
            if self._sites is None:
                self._sites = find_sites(self.model)
            site = self._sites.get(plain_key(current_key))
            site = site or Site(current_key, layer.out_features, layer.in_features)
            network = declared(peft_config, site)
            layer.add_adapter(
                adapter_name,
                network,
                self._store(network),
                peft_config.inference_mode,
                self._device(layer),
                peft_config.strength(site),
            )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            if isinstance(parent, nn.TransformerEncoderLayer):
                # It computes with the weights of layers without hooks by itself.
                layer.register_forward_hook(_nothing)
            setattr(parent, target_name, layer)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What is saved of an adapter: what PEFT finds in layers, and the shared cores.

        PEFT would go on to save the base weight of an output layer that is adapted; it is left out
        of `state_dict` unless the vocabulary was resized.
        """
        found: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        own = own_names(model, adapter_name)
        found |= {name: value for name, value in state_dict.items() if name in own}
        outputs: Any = getattr(model, "get_output_embeddings", None)
        head = None if outputs is None else outputs()
        if isinstance(head, NetworkLayer) and not is_resized(model, config):
            place = next(name for name, module in model.named_modules() if module is head)
            for name in [n for n in state_dict if n.startswith(f"{place}.base_layer.")]:
                del state_dict[name]
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The name in a file: without the adapter, and as in a model that is not compiled."""
        name: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return name.replace("_orig_mod.", "")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Translate a file's names; refuse values that are not this adapter's.

        An adapter that was built for this file is taken out again where they are refused.
        """
        state_dict = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
        places: dict[str, str] = {}
        for name in own_names(model, adapter_name):
            saved = cls._remove_adapter_name_from_key(name, adapter_name)
            places |= {saved: name, PREFIX + saved: name}
        mapped = {places.get(name, name): value for name, value in state_dict.items()}
        tuner = getattr(model, "base_model", None)
        before = tuner._loading.pop(adapter_name, None) if isinstance(tuner, cls) else None
        try:
            check_loaded(mapped, model, adapter_name)
        except ValueError:
            if isinstance(tuner, cls) and before is not None:
                tuner._withdraw(tuner.model, adapter_name, before)
                tuner.peft_config.pop(adapter_name, None)
            raise
        return mapped

    def _compare_bases(self, model: nn.Module, adapter_name: str, *, fresh: bool) -> None:
        """Record what the adapter and its base are, or say how a saved one's base differs."""
        config: MethodFields = self.peft_config[adapter_name]  # type: ignore[assignment]
        layers = self._layers(model, adapter_name)
        linear = [layer for _, layer in layers if isinstance(layer, NetworkLayer)]
        bases = [described(layer.get_base_layer()) for layer in linear]
        base = next((found for found in bases if found is not None), None)
        start = {k: v for k, v in (config.described or {}).items() if k == "start"}
        config.described = start | facts(layer.stored(adapter_name).declared for _, layer in layers)
        if fresh:
            for name, layer in layers:
                network = layer.stored(adapter_name).network
                if base is not None and getattr(network, "residual", False):
                    raise ValueError(
                        f"{name}: residual=True over a base in 4 bits would take theta_0 out of "
                        "weights that are rounded already. Adapt the model in full precision and "
                        "quantise it then, by tnlib_adapters.quantization.quantize_base(model); "
                        "or leave residual out: the update is then added to the 4-bit base as is"
                    )
            config.base_quantization = base
        elif text := difference(config.base_quantization, base):
            warnings.warn(text, stacklevel=3)

    def _withdraw(self, model: nn.Module, adapter_name: str, before: Before) -> None:
        """Make the model what it was before an adapter was injected."""
        before.restore(model, adapter_name)
        self.targeted_module_names = before.targeted


def _nothing(*_: Any) -> None:
    """A hook."""
