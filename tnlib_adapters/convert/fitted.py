"""Cores that were fitted to given updates, and how far they are from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib_adapters.convert.conversion import Conversion, ConvertedWeight
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.expert_network import ExpertNetwork, expert_keys, together
from tnlib_adapters.peft_plugin.config import NetworkConfig


class Fitted:
    """A configuration with the cores that stand for given updates.

    Parameters
    ----------
    config : NetworkConfig
        Configuration.
    networks : dict of str to Network, FusedProjection or ExpertNetwork
        Declarations by weight.
    cores : dict of str to dict of str to Tensor
        Values by weight and key, of experts by that of each; those of a group are the same in
        every weight. They are rounded to float32, as a file has them.
    updates : mapping of str to LowRankUpdate
        What they stand for, of experts that of each.
    others : dict of str to Tensor
        What was trained in full, by its names in a file.
    strengths : dict of str to float or None
        How far a step moves the update of every weight, see :class:`Update`.
    """

    def __init__(
        self,
        config: NetworkConfig,
        networks: dict[str, Any],
        cores: dict[str, dict[str, Tensor]],
        updates: Mapping[str, LowRankUpdate],
        others: dict[str, Tensor],
        strengths: dict[str, float | None],
    ) -> None:
        self.config = config
        self.networks = networks
        self.updates = updates
        self.others = others
        self.strengths = strengths
        whole = {name: together(name, network, cores) for name, network in networks.items()}
        self.own = {
            name: {c.key: whole[name][c.key].float() for c in network.cores if c.group is None}
            for name, network in networks.items()
        }
        self.shared = {
            core.key: whole[name][core.key].float()
            for name, network in networks.items()
            for core in network.cores
            if core.group is not None
        }

    @property
    def error(self) -> float:
        """Relative error of all updates together."""
        return self.conversion(0).error

    def conversion(self, size: int) -> Conversion:
        """The result, for a file of `size` bytes."""
        shared = sum(value.numel() for value in self.shared.values())
        return Conversion(self._weights, shared, size)

    @cached_property
    def _weights(self) -> tuple[ConvertedWeight, ...]:
        return tuple(map(self._weight, self.networks))

    def _weight(self, name: str) -> ConvertedWeight:
        """Error and size of one weight, whose two dense updates are formed for it."""
        network, own = self.networks[name], self.own[name]
        cores = {key: (self.shared | own)[key].double() for key in network.shapes}
        single = {name: (network, cores)}
        shape: tuple[int, ...] = (network.out_features, network.in_features)
        ranks = self.config.weight_ranks(network)
        if isinstance(network, ExpertNetwork):
            keys = enumerate(expert_keys(name, network))
            single = {key: (network.alone, network.of_expert(cores, e)) for e, key in keys}
            shape, ranks = (network.n_experts, *shape), self.config.weight_ranks(network.at(0))
        off = norm = 0.0
        for key, (part, values) in single.items():
            old = self.updates[key].dense()
            off = math.hypot(off, float(torch.linalg.norm(part.delta(values) - old)))
            norm = math.hypot(norm, float(torch.linalg.norm(old)))
        error = off / norm if norm else (math.inf if off else 0.0)
        size = sum(value.numel() for value in own.values())
        return ConvertedWeight(name, shape, ranks, size, error, norm)


def check_networks(networks: Mapping[str, Any]) -> None:
    """Raise ValueError unless all networks are updates of weights."""
    for name, network in networks.items():
        if not network.additive:
            form = f"; a LoRA can become {network.additive_form}" if network.additive_form else ""
            raise ValueError(f"{name}: a {network.title} is not a change of weights{form}")


def check_cores(
    networks: Mapping[str, Any], cores: Mapping[str, Mapping[str, Tensor]], config: NetworkConfig
) -> None:
    """Raise ValueError unless a fit gives what the networks need."""
    for name, network in networks.items():
        found = {key: tuple(cores[name][key].shape) for key in network.shapes if key in cores[name]}
        if found != network.shapes:
            raise ValueError(
                f"{name}: fit_updates of {type(config).__name__} gives cores of shapes {found}, "
                f"the network needs {network.shapes}"
            )


def smallest(
    fitted: Callable[[NetworkConfig], Fitted], config: NetworkConfig, eps: float, *, show: bool
) -> Fitted:
    """The fit of the smallest size whose error is at most `eps`, by bisection."""
    best = fitted(config)
    if best.error > eps:
        raise ValueError(
            f"the relative error is {best.error:.3g} at the largest size allowed, which is more "
            f"than eps={eps:g}; raise {config.size_field} in the configuration, or eps"
        )
    # What is known not to be enough, and what is.
    low, high = 0, getattr(config, config.size_field)
    with tqdm(desc="sizes", disable=not show) as bar:
        while high - low > 1:
            middle = (low + high) // 2
            found = fitted(config.resized(middle))
            bar.set_postfix_str(f"{middle}: {found.error:.3g}")
            bar.update()
            if found.error <= eps:
                best, high = found, middle
            else:
                low = middle
    return best
