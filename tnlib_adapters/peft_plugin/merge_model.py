"""How the adapters of a model are merged, and what merging reports."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, onload_layer
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from tqdm.auto import tqdm

from tnlib_adapters.peft_plugin.adapted_experts import put_experts_back
from tnlib_adapters.peft_plugin.core_store import STORE
from tnlib_adapters.peft_plugin.layer import NetworkLayer
from tnlib_adapters.peft_plugin.merged_layer import MergeInto, rounding_report
from tnlib_adapters.peft_plugin.modules_to_save import restore_parts
from tnlib_adapters.peft_plugin.naming import naming
from tnlib_adapters.peft_plugin.trained_norms import put_norms_back
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer
from tnlib_adapters.quantization.metadata import refresh


class Merging(BaseTuner):
    """A tuner whose layers are :class:`NetworkLayer`."""

    def merge_adapter(
        self,
        adapter_names: list[str] | None = None,
        safe_merge: bool = False,
        *,
        dtype: torch.dtype = torch.bfloat16,
        requantize: bool = False,
        progressbar: bool = False,
    ) -> None:
        """Merge in every layer, or in none: all merged weights are computed before one is written.

        Where something is lost, a warning reports how much of the update. A quantised base is
        dequantised and merged in float32; ``unmerge_adapter`` puts it back as it was. A weight that
        another module has too, such as a tied output, is merged into a copy.

        Parameters
        ----------
        adapter_names : list of str, optional
            Adapters to merge, the active ones by default.
        safe_merge : bool
            Check that the merged weights are finite.
        dtype : torch.dtype
            What quantised layers become; others keep their dtype.
        requantize : bool
            Quantise merged weights as their base was, instead.
        progressbar : bool
            Show progress.

        Raises
        ------
        TypeError
            If an adapter is not an update of the weight; then nothing is merged.
        ValueError
            If bitsandbytes has rewritten a layer for inference, or with `safe_merge` a merged
            weight would not be finite; then nothing is merged.
        """
        into = MergeInto(dtype, requantize)
        self._check_mergeable(adapter_names)
        layers = dict(self._all_layers())
        names = {
            key: [n for n in adapter_names or self.active_adapters if n in layer.held]
            for key, layer in layers.items()
        }
        before = {
            key: (layer.merging, layer.tied, [*layer.merged_adapters])
            for key, layer in layers.items()
        }
        tied = self._tied(layers)
        bar = tqdm(total=2 * len(layers), desc="merging", disable=not progressbar, unit="layer")
        try:
            with bar:
                for key, layer in layers.items():
                    self._settle(layer, into, key in tied)
                    new = [n for n in names[key] if n not in layer.merged_adapters]
                    with naming(key), onload_layer(layer):
                        if new:
                            layer.merged_with(new, check=safe_merge)
                    bar.update()
                for layer in layers.values():
                    with onload_layer(layer):
                        layer.merge(safe_merge, adapter_names)
                    bar.update()
        except BaseException:
            for key, layer in layers.items():
                earlier, was_tied, merged = before[key]
                with onload_layer(layer):
                    layer.take_back([n for n in layer.merged_adapters if n not in merged])
                    self._settle(layer, earlier, was_tied)
                layer.tied = was_tied
            raise
        self._report_rounding([layer for layer in layers.values() if layer.merged])

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        requantize: bool = False,
    ) -> Any:
        """Merge as :meth:`merge_adapter` does, and return the model without adapters."""
        self.merge_adapter(
            adapter_names, safe_merge, dtype=dtype, requantize=requantize, progressbar=progressbar
        )
        return self._unload(merged=True, adapter_names=adapter_names)

    def unload(self) -> Any:
        """Return the model without adapters."""
        return self._unload(merged=False)

    def _unload(self, *, merged: bool, adapter_names: list[str] | None = None) -> Any:
        """Take the adapters out, where everything that shall be merged is."""
        if not merged:
            restore_parts(self.model)
        put_norms_back(self.model)
        put_experts_back(self.model, all=True)
        for key, layer in self._all_layers():
            if isinstance(layer, NetworkLayer):
                parent, _, child = key.rpartition(".")
                setattr(self.model.get_submodule(parent), child, layer.base_layer)
        if hasattr(self.model, STORE):
            delattr(self.model, STORE)
        # What is left to PEFT: modules that were trained in full, and its own notes.
        self._unload_and_optionally_merge(merged, adapter_names=adapter_names)
        refresh(self.model)
        return self.model

    def _check_merge_allowed(self) -> None:
        """Tied weights are no obstacle: they are merged into copies."""

    def _check_tied_modules(self, model: nn.Module, peft_config: Any) -> None:
        """Warn, where PEFT does, of what it means to adapt a tied weight."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            super()._check_tied_modules(model, peft_config)
        for warning in found:
            text = str(warning.message)
            if "is part of the adapter" in text:
                text = (
                    "tie_word_embeddings=True: the adapted layer shares its weight with another, "
                    "which the adapter does not change; merging gives the layer a weight of its own"
                )
                if any(end in EMBEDDING_LAYER_NAMES for end in _ends(peft_config.modules_to_save)):
                    text = (
                        "tie_word_embeddings=True, and one of two layers that have one weight is "
                        "trained in full; set ensure_weight_tying=True to train the weight of both"
                    )
            warnings.warn(text, stacklevel=6)

    def _add_modules_to_save_to_tie(self, peft_config: Any, tied_weight_keys: Any) -> None:
        """Train one copy of a weight that several modules have: that of the embedding."""
        inputs = self.model.get_input_embeddings()
        name = next(n for n, module in self.model.named_modules() if module is inputs)
        tied = {key.removesuffix(".weight") for key in tied_weight_keys}
        ends = {key.rpartition(".")[2] for key in tied}
        saved = [key for key in peft_config.modules_to_save if key.rpartition(".")[2] not in ends]
        leaf = name.rpartition(".")[2]
        if not any(key.rpartition(".")[2] == leaf for key in saved):
            saved.append(leaf)
        peft_config.modules_to_save = saved
        peft_config.modules_to_tie = tied

    def _add_targets_to_tie(self, peft_config: Any, tied_weight_keys: Any) -> None:
        """Refuse to adapt one of two layers with one weight as if it was both."""
        raise ValueError(
            "ensure_weight_tying=True, and a layer is adapted whose weight another layer has too "
            f"({', '.join(sorted(tied_weight_keys))}); adapters of linear layers do not change "
            "embeddings. Train the embedding by modules_to_save or trainable_token_indices, or "
            "leave ensure_weight_tying out"
        )

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in the place of another, which need not have a weight of its own."""
        setattr(parent, child_name, new_module)

    def _settle(self, layer: WeightLayer, into: MergeInto, tied: bool) -> None:
        """Say into what a layer merges; what is merged otherwise already is merged again."""
        merged = [*layer.merged_adapters]
        again = merged and ((layer.is_quantized and layer.merging != into) or tied > layer.tied)
        if again:
            layer.take_back(merged)
        layer.merging, layer.tied = into, tied or layer.tied
        if again:
            layer.merge(adapter_names=merged)

    def _tied(self, layers: dict[str, WeightLayer]) -> set[str]:
        """Names of the layers whose weight is that of another module too."""
        owners = Counter(
            id(parameter)
            for module in self.model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )
        return {key for key, layer in layers.items() if owners[id(layer.base_parameter)] > 1}

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        """Raise before anything is merged if something cannot be."""
        for name in adapter_names or self.active_adapters:
            for key, layer in self._layers(self.model, name):
                with naming(key):
                    layer.check_mergeable(name)
                    if hasattr(layer.base_parameter, "full_tensor"):
                        raise ValueError(
                            "the weight is sharded over devices; save the adapter, load it in one "
                            "process and merge there"
                        )

    def _report_rounding(self, layers: list[WeightLayer]) -> None:
        lost = [value for layer in layers for value in layer.rounding]
        if any(error for found in lost for pair in found.values() for error in pair):
            warnings.warn(rounding_report(lost), stacklevel=3)

    def _all_layers(self) -> list[tuple[str, WeightLayer]]:
        return [(k, m) for k, m in self.model.named_modules() if isinstance(m, WeightLayer)]

    def _layers(self, model: nn.Module, adapter_name: str) -> list[tuple[str, WeightLayer]]:
        return [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, WeightLayer) and adapter_name in layer.held
        ]

    def _names(self, model: nn.Module, adapter_name: str) -> list[str]:
        return [name for name, _ in self._layers(model, adapter_name)]


def _ends(names: Collection[str] | None) -> list[str]:
    return [name.rpartition(".")[2] for name in names or ()]
