"""Networks fitted to gradients: which form has which cores, and how much of the energy it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.gradients.weight_gradients import WeightGradient
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration, Declaration
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.method import Fit

Cores = dict[str, dict[str, Tensor]]


def check_fitted(config: NetworkConfig, networks: Mapping[str, Declaration]) -> None:
    """Raise TypeError unless the networks are updates of weights that can be fitted."""
    for name, network in networks.items():
        if not network.additive:
            form = f"; set {network.additive_form}" if network.additive_form else ""
            raise TypeError(f"{name}: a {network.title} is not a change of weights{form}")
    if config.fit_gradients is None:
        raise TypeError(
            f"{type(config).__name__} does not say how its cores are fitted: it needs fit_updates"
        )


def fitted(
    fit: Fit,
    networks: Mapping[str, AdditiveDeclaration],
    gradients: Mapping[str, WeightGradient],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> Cores:
    """Cores by weight and key of networks near the gradients."""
    # The scale of a loss is not that of an update.
    energy = sum(gradient.energy for gradient in gradients.values())
    size = math.sqrt(energy) or 1.0
    updates = {
        name: LowRankUpdate(gradients[name].leading.left / size, gradients[name].leading.right)
        for name in networks
    }
    return fit(networks, updates, generator, show=show)


def held_energy(
    networks: Mapping[str, AdditiveDeclaration],
    cores: Cores,
    gradients: Mapping[str, WeightGradient],
) -> float:
    """Which part of the energy of all gradients is in the networks that were fitted to them."""
    energy = sum(gradients[name].energy for name in networks)
    if not energy:
        return 0.0
    size, missed = math.sqrt(energy), 0.0
    for name, network in networks.items():
        gradient = gradients[name]
        leading = gradient.leading.dense() / size
        tail = max(gradient.energy / energy - float(leading.square().sum()), 0.0)
        values = {key: cores[name][key].double() for key in network.shapes}
        none = {key: torch.zeros_like(value) for key, value in values.items()}
        update = network.delta(values, none if network.anchored else None)
        difference = leading - update.to(leading)
        missed += float(difference.square().sum()) + tail
    return max(1.0 - missed, 0.0)
