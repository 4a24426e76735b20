"""Adapters made of others, in a tuner."""

from __future__ import annotations

from typing import Any

from tnlib_adapters.peft_plugin.expert_layer import ExpertLayer
from tnlib_adapters.peft_plugin.merge_model import Merging
from tnlib_adapters.peft_plugin.naming import naming
from tnlib_adapters.peft_plugin.weighted_sum import (
    EXACT,
    check_arguments,
    set_sum,
    summed_config,
)


class Summing(Merging):
    """A tuner that can add weighted sums of its adapters."""

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "linear",
        svd_rank: int | None = None,
    ) -> float:
        """Add an adapter that is a weighted sum of others; the relative error of its updates.

        Parameters
        ----------
        adapters : list of str
            Adapters that are there.
        weights : list of float
            One for each.
        adapter_name : str
            Name of the new one; it is not active.
        combination_type : str
            "linear" or "cat": as large as all together, and exact. "svd": of the size `svd_rank`,
            fitted to the sum by the method's decomposition.
        svd_rank : int, optional
            Size of the method (`r`, `tt_rank`); by default that of the largest.

        Raises
        ------
        TypeError, ValueError
            If adapters cannot be summed.
        """
        configs: Any = self.peft_config
        check_arguments(configs, adapters, weights, adapter_name, combination_type)
        adapted = {}
        for name in adapters:
            for key, layer in self._layers(self.model, name):
                with naming(key):
                    layer.check_mergeable(name)
                    layer.check_not_rescaled()
                adapted[key] = isinstance(layer, ExpertLayer)
        chosen = [configs[name] for name in adapters]
        config = summed_config(chosen, svd_rank, combination_type, adapted)
        active = [*self.active_adapters]
        trained = [(p, p.requires_grad) for p in self.model.parameters()]
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        try:
            layers = dict(self._layers(self.model, adapter_name))
            if layers.keys() != adapted.keys():
                missing = sorted(adapted.keys() ^ layers.keys())[0]
                raise ValueError(f"{missing} is adapted by the adapters, or the sum, only")
            exact = combination_type in EXACT
            return set_sum(layers, config, adapters, weights, adapter_name, exact=exact)
        except BaseException:
            self.delete_adapter(adapter_name)
            raise
        finally:
            self.set_adapter(active)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)
