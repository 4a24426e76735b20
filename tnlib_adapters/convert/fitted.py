"""Cores that were fitted to a LoRA, and how far they are from it."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tnlib_adapters.convert.conversion import Conversion, ConvertedWeight
from tnlib_adapters.convert.read_lora import LoRA
from tnlib_adapters.peft_plugin.config import NetworkConfig


class Fitted:
    """A configuration with the cores that stand for the updates of a LoRA.

    Parameters
    ----------
    config : NetworkConfig
        Configuration.
    networks : dict of str to Network or FusedProjection
        Declarations by weight.
    cores : dict of str to dict of str to Tensor
        Values by weight and key; those of a group are the same in every weight. They are rounded
        to float32, as a file has them.
    lora : LoRA
        What they stand for.
    strengths : dict of str to float or None
        How far a step moves the update of every weight, see :class:`Update`.
    """

    def __init__(
        self,
        config: NetworkConfig,
        networks: dict[str, Any],
        cores: dict[str, dict[str, Tensor]],
        lora: LoRA,
        strengths: dict[str, float | None],
    ) -> None:
        self.config = config
        self.networks = networks
        self.lora = lora
        self.strengths = strengths
        self.own = {
            name: {c.key: cores[name][c.key].float() for c in network.cores if c.group is None}
            for name, network in networks.items()
        }
        self.shared = {
            core.key: cores[name][core.key].float()
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
        network, own, update = self.networks[name], self.own[name], self.lora.updates[name]
        cores = {key: (self.shared | own)[key].double() for key in network.shapes}
        old = update.dense()
        off = float(torch.linalg.norm(network.delta(cores) - old))
        norm = float(torch.linalg.norm(old))
        error = off / norm if norm else (math.inf if off else 0.0)
        values = sum(value.numel() for value in own.values())
        return ConvertedWeight(
            name, update.shape, self.config.weight_ranks(network), values, error, norm
        )
