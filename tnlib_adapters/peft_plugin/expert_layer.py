"""The adapters of a weight of experts, or of a projection that is fused in one.

The module that has the weight is in an :class:`AdaptedExperts`, which computes with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.expert_parameters import ExpertParameter
from tnlib_adapters.base_model.offloaded import device_of
from tnlib_adapters.layers.expert_update import ExpertUpdate
from tnlib_adapters.networks.core import computing
from tnlib_adapters.networks.expert_network import ExpertNetwork
from tnlib_adapters.peft_plugin.core_store import CoreStore
from tnlib_adapters.peft_plugin.merged_layer import Merged, RoundingErrors
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields


class ExpertLayer(WeightLayer):
    """The adapters of a weight of experts.

    Parameters
    ----------
    owner : torch.nn.Module
        The module that has the parameter.
    parameter : ExpertParameter
        Which rows of which parameter are adapted.
    """

    def __init__(self, owner: nn.Module, parameter: ExpertParameter) -> None:
        super().__init__()
        self.parameter = parameter
        self.out_features, self.in_features = parameter.out_features, parameter.in_features
        # Registered by the module that computes with it.
        object.__setattr__(self, "_owner", owner)

    def add_adapter(
        self,
        adapter_name: str,
        network: ExpertNetwork,
        store: CoreStore | None,
        inference_mode: bool,
        device: torch.device,
        strength: float | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        """Allocate an update on a device, see :class:`ExpertUpdate`; the tuner sets its values."""
        network.check_fits(self.out_features, self.in_features)
        update = ExpertUpdate(
            network,
            self.shared_cores(adapter_name, store),
            n_experts=self.parameter.n_experts,
            chosen=chosen,
            device=device,
            dtype=computing([self.values]),
            strength=strength,
        )
        self.hold(adapter_name, update, inference_mode)

    @property
    def values(self) -> Tensor:
        """The parameter."""
        return getattr(self._owner, self.parameter.parameter)  # type: ignore[no-any-return]

    @property
    def whole_shape(self) -> tuple[int, int]:
        """Output and input width of the matrices of the parameter, of all its parts."""
        out = self.values.shape[2 if self.parameter.transposed else 1]
        return out, self.in_features

    @property
    def weight(self) -> Tensor:
        """The parameter, which has the rows of other projections too where some are fused."""
        return self.values

    def get_base_layer(self) -> nn.Module:
        """The module that has the parameter."""
        return self._owner  # type: ignore[return-value]

    def update(self, adapter_name: str) -> ExpertUpdate:
        """The update of one adapter."""
        return self.held[adapter_name]  # type: ignore[return-value]

    def weight_of(self, expert: int) -> Tensor:
        """The matrix of one expert, (out_features, in_features)."""
        return self._oriented(self.values[expert])

    def _oriented(self, matrix: Tensor) -> Tensor:
        matrix = matrix.mT if self.parameter.transposed else matrix
        return matrix[self.parameter.rows]

    def place(self) -> torch.device:
        """Where the experts compute."""
        hooked = hasattr(self._owner, "_hf_hook")
        return device_of(self._owner) if hooked else self.values.device  # type: ignore[arg-type]

    def base_dtype(self) -> torch.dtype | None:
        """Dtype of the parameter."""
        return self.values.dtype

    def base_on_meta(self) -> bool:
        """Whether the parameter has no values."""
        return self.values.is_meta

    def initial_values(self, adapter_name: str, config: MethodFields) -> dict[str, Tensor]:
        """Initial cores by key; what is declared for one expert is started for each in turn."""
        update = self.update(adapter_name)
        declared: ExpertNetwork = update.declared  # type: ignore[assignment]
        if declared.single is None:
            return config.initial_cores(declared.network)
        chosen = range(self.parameter.n_experts) if update.chosen is None else update.chosen
        started: dict[str, list[Tensor]] = {}
        for expert in chosen:
            weight = self.weight_of(expert).detach() if config.uses_weight else None
            for key, value in config.initial_cores(declared.single, weight).items():
                started.setdefault(key, []).append(value)
        own = {key for core in declared.cores if not core.group for key in (core.key,)}
        return {
            key: torch.stack(values) if key in own or "anchor_" in key else values[0]
            for key, values in started.items()
        }

    @torch.no_grad()
    def factors(self, adapter_name: str, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """Two factors whose product is an adapter's update of one adapted expert."""
        update = self.update(adapter_name)
        number = expert or 0
        number = number if update.chosen is None else update.chosen[number]
        found = update.cut_factors(number)
        if found is None:
            delta = update.delta(number)
            return delta, torch.eye(self.in_features, dtype=delta.dtype, device=delta.device)
        return found

    def first_update(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """The update of the first adapted expert and its base weight."""
        update = self.update(adapter_name)
        expert = 0 if update.chosen is None else update.chosen[0]
        return update.delta(expert), self.weight_of(expert)

    @property
    def base_parameter(self) -> Tensor:
        """The parameter."""
        return self.values

    def check_mergeable(self, adapter_name: str) -> None:
        """Raise RuntimeError if an adapter has no values yet; updates of experts always merge."""
        self.update(adapter_name).check_initialized()

    def put(self, merged: Merged) -> None:
        """Take up a merged parameter."""
        self.values.data = merged.weight

    def merged_with(self, names: Sequence[str], *, check: bool = False) -> Merged:
        """The parameter with more adapters merged; the module is left as it is.

        Raises
        ------
        ValueError
            As :meth:`merge` does.
        """
        merged, rounding = self._plus(names, 1.0)
        if check and not torch.isfinite(merged).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {' or '.join(names)} seems to "
                "be broken: its sum with the base weight is not finite; nothing was merged"
            )
        return Merged(merged, rounding=rounding)

    @torch.no_grad()
    def _plus(self, names: Sequence[str], sign: float) -> tuple[Tensor, list[RoundingErrors]]:
        """The parameter plus or minus updates, and what the cast to its dtype takes."""
        made = self.values.detach().clone()
        lost = of_delta = of_total = 0.0
        exact = made.dtype.itemsize >= 4
        for expert in range(self.parameter.n_experts):
            updates = [self.update(name) for name in names]
            found = [u.delta(expert).to(made.device) for u in updates if u.slot(expert) is not None]
            if not found:
                continue
            place = self._oriented(made[expert])
            delta = sign * torch.stack(found).sum(0) if len(found) > 1 else sign * found[0]
            total = place.to(computing([made, delta])) + delta
            place.copy_(total)
            if not exact:
                lost += float((place.to(total.dtype) - total).square().sum())
                of_delta += float(delta.square().sum())
                of_total += float(total.square().sum())
        if exact:
            return made, []
        update, weight = ((lost / whole) ** 0.5 if whole else 0.0 for whole in (of_delta, of_total))
        return made, [{str(made.dtype): (update, weight)}]

    def take_back(self, names: Sequence[str]) -> None:
        """Unmerge the adapters `names` only."""
        gone = [name for name in self.merged_adapters if name in names]
        if gone:
            self.rounding = []
            self.values.data = self._plus(gone, -1.0)[0]
            self.merged_adapters = [n for n in self.merged_adapters if n not in gone]

    def active_updates(self) -> list[ExpertUpdate]:
        """The updates that apply."""
        if self.disable_adapters or self.merged:
            return []
        return [self.update(name) for name in self.active_adapters if name in self.held]

    def extra_repr(self) -> str:
        """The weight that is adapted."""
        p = self.parameter
        return f"experts={p.n_experts}, out_features={p.out_features}, in_features={p.in_features}"

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's conversion knows layers, not parameters."""
        return False
