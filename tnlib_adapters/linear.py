"""A linear layer with a tensor-network update, in plain torch.

What the PEFT plug-in does per adapter, for people who want one layer and no framework. The base
layer is frozen and left as it is; the cores are the trainable parameters.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from tnlib_adapters.network import Network, Site, computing
from tnlib_adapters.update import Update, adapted_forward


class Method(Protocol):
    """What a method's configuration offers: a network for a weight, and where it starts."""

    def network(self, site: Site) -> Network:
        """The network that adapts the weight at `site`."""

    def initial_cores(
        self, network: Network, weight: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Initial cores for a dense weight (out_features, in_features)."""


class NetworkLinear(nn.Module):
    """A frozen linear layer plus the update that a network of trainable cores stands for.

    Parameters
    ----------
    base : torch.nn.Linear
        The layer to adapt. Its parameters are frozen, its weight is never changed.
    network : Network
        Declaration of the update.
    cores : dict of str to Tensor
        Initial values by core name; an anchored network keeps a frozen copy of them.

    Attributes
    ----------
    base : torch.nn.Linear
        The frozen layer.
    update : Update
        The trainable cores, and the frozen initial ones of an anchored network.

    Raises
    ------
    TypeError
        If `base` is not a torch.nn.Linear.
    ValueError
        If the shapes of network, cores and layer do not fit.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import DoTAConfig, NetworkLinear
    >>> linear = torch.nn.Linear(64, 48)
    >>> layer = NetworkLinear.from_linear(linear, DoTAConfig(r=4))
    >>> x = torch.randn(2, 64)
    >>> torch.equal(layer(x), linear(x))
    True
    """

    def __init__(self, base: nn.Linear, network: Network, cores: dict[str, Tensor]) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be a torch.nn.Linear, got {type(base).__name__}")
        if (network.out_features, network.in_features) != (base.out_features, base.in_features):
            raise ValueError(
                f"the network is {network.out_features} x {network.in_features}, the layer "
                f"{base.out_features} x {base.in_features}"
            )
        self.base = base.requires_grad_(False)
        weight = base.weight
        self.update = Update(network, device=weight.device, dtype=computing([weight]))
        self.update.start(cores)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, method: Method, *, generator: torch.Generator | None = None
    ) -> NetworkLinear:
        """Adapt `linear` by a method such as ``DoTAConfig(r=16)``.

        Parameters
        ----------
        linear : torch.nn.Linear
            The layer to adapt; frozen, not copied.
        method : Method
            A configuration, or any object with ``network`` and ``initial_cores``.
        generator : torch.Generator, optional
            Randomness of the initial cores, torch's global generator by default.
        """
        network = method.network(Site("", linear.out_features, linear.in_features))
        cores = method.initial_cores(network, linear.weight.detach(), generator)
        return cls(linear, network, cores)

    def delta_weight(self) -> Tensor:
        """The dense update (out_features, in_features); differentiable."""
        return self.update.delta()

    def merged(self) -> nn.Linear:
        """A new plain layer with the update added to the weight, in float32 before the cast."""
        layer = copy.deepcopy(self.base)
        with torch.no_grad():
            layer.weight.copy_(self.base.weight + self.delta_weight())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapted layer to ``x`` of shape (..., in_features)."""
        return adapted_forward(self.base, x, [self.update])
