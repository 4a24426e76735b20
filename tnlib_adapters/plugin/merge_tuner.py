"""How the adapters of a model are merged, and what merging reports."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from tnlib_adapters.fourbit.layer import packed_weight
from tnlib_adapters.fourbit.notes import refresh
from tnlib_adapters.plugin.extras import restore_parts
from tnlib_adapters.plugin.layer import STORE, NetworkLayer
from tnlib_adapters.plugin.merging import MergeInto, told
from tnlib_adapters.plugin.naming import naming


class Merging(BaseTuner):
    """A tuner whose layers are :class:`NetworkLayer`."""

    def merge_adapter(
        self,
        adapter_names: list[str] | None = None,
        safe_merge: bool = False,
        *,
        dtype: torch.dtype = torch.bfloat16,
        requantize: bool = False,
    ) -> None:
        """Merge in every layer; with `safe_merge` look at all updates before the first is.

        Where something is lost, a warning reports how much of the update. A quantised base is
        dequantised and merged in float32; ``unmerge_adapter`` puts it back as it was.

        Parameters
        ----------
        adapter_names : list of str, optional
            Adapters to merge, the active ones by default.
        safe_merge : bool
            Check that the updates, and the merged weights, are finite.
        dtype : torch.dtype
            What quantised layers become; others keep their dtype.
        requantize : bool
            Quantise merged weights as their base was, instead.

        Raises
        ------
        TypeError
            If an adapter is not an update of the weight; then nothing is merged.
        ValueError
            If bitsandbytes has rewritten a layer for inference; then nothing is merged.
        """
        self._merge_into(MergeInto(dtype, requantize))
        self._check_mergeable(adapter_names)
        if safe_merge:
            for name in adapter_names or self.active_adapters:
                for key, layer in self._layers(self.model, name):
                    with naming(key):
                        layer.check_update(name)
        super().merge_adapter(adapter_names, safe_merge)
        self._report_rounding([layer for layer in self._all_layers() if layer.merged])

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
        self._merge_into(MergeInto(dtype, requantize))
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _merge_into(self, into: MergeInto) -> None:
        for layer in self._all_layers():
            merged = [*layer.merged_adapters]
            again = merged and layer.is_quantized and layer.merging != into
            if again:
                layer.unmerge()
            layer.merging = into
            if again:
                layer.merge(adapter_names=merged)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_mergeable(adapter_names)
        else:
            restore_parts(self.model)
        layers = self._all_layers()
        model: Any = super()._unload_and_optionally_merge(
            merge, progressbar, safe_merge, adapter_names
        )
        if merge:
            self._report_rounding([layer for layer in layers if layer.merged])
        if hasattr(self.model, STORE):
            delattr(self.model, STORE)
        refresh(model)
        return model

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        """Raise before anything is merged if something cannot be."""
        for name in adapter_names or self.active_adapters:
            for key, layer in self._layers(self.model, name):
                with naming(key):
                    layer.update(name).weight_network()
                    # Of a quantised base, whether it can be read.
                    packed_weight(layer.get_base_layer())
                    if hasattr(layer.get_base_layer().weight, "full_tensor"):
                        raise ValueError(
                            "the weight is sharded over devices; save the adapter, load it in one "
                            "process and merge there"
                        )

    def _report_rounding(self, layers: list[NetworkLayer]) -> None:
        lost = [value for layer in layers for value in layer.rounding.values()]
        if lost:
            warnings.warn(told(lost), stacklevel=3)

    def _all_layers(self) -> list[NetworkLayer]:
        return [module for module in self.model.modules() if isinstance(module, NetworkLayer)]

    def _layers(self, model: nn.Module, adapter_name: str) -> list[tuple[str, NetworkLayer]]:
        return [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, NetworkLayer) and adapter_name in layer.held
        ]

    def _names(self, model: nn.Module, adapter_name: str) -> list[str]:
        return [name for name, _ in self._layers(model, adapter_name)]
