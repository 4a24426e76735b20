"""A linear layer with a tensor-network update, in plain torch.

What the PEFT plug-in does per adapter, for people who want one layer and no framework. The base
layer is frozen and left as it is; the cores are the trainable parameters.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.fourbit.dense_layers import DenseLinear
from tnlib_adapters.layers.base_layer import dense_weight
from tnlib_adapters.layers.forward import adapted_forward
from tnlib_adapters.layers.shared_cores import SharedCores
from tnlib_adapters.layers.update import Update
from tnlib_adapters.networks.as_tnlib import UpdateView
from tnlib_adapters.networks.core import computing
from tnlib_adapters.networks.declaration_kinds import Declaration


class Method(Protocol):
    """What a method's configuration offers: a network for a weight, and where it starts."""

    def network(self, site: Site) -> Declaration:
        """The network that adapts the weight at `site`."""

    def initial_cores(
        self, network: Declaration, weight: Tensor | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Initial cores for a dense weight (out_features, in_features)."""


class NetworkLinear(nn.Module):
    """A frozen linear layer plus the update that a network of trainable cores stands for.

    Parameters
    ----------
    base : torch.nn.Linear
        The layer to adapt. Its parameters are frozen, its weight is never changed.
    network : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        Declaration of the update.
    cores : dict of str to Tensor
        Initial values by key; an anchored network keeps a frozen copy of them.
    shared : SharedCores, optional
        Where the cores of sharing groups are; pass one to all layers of a model. A layer whose
        network has groups gets its own by default.
    strength : float, optional
        How many times as far as LoRA's a step of the learning rate moves the update: the cores are
        stored divided by multipliers. None stores them as they are.

    Attributes
    ----------
    base : torch.nn.Linear
        The frozen layer.
    update : Update
        The trainable cores of this layer, and the frozen initial ones of an anchored network.
    shared : SharedCores or None
        The cores of groups, a submodule as in any torch model with tied weights: ``parameters()``
        names them once.

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

    def __init__(
        self,
        base: nn.Linear,
        network: Declaration,
        cores: dict[str, Tensor],
        *,
        shared: SharedCores | None = None,
        strength: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be a torch.nn.Linear, got {type(base).__name__}")
        network.check_fits(base.out_features, base.in_features)
        if strength is not None and network.in_series_with_weight:
            network = network.beside(dense_weight(base))
        self.base = base.requires_grad_(False)
        weight = base.weight
        if shared is None and any(core.group for core in network.cores):
            shared = SharedCores()
        self.update = Update(
            network, shared, device=weight.device, dtype=computing([weight]), strength=strength
        )
        self.shared = shared
        self.update.set_initial(cores)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        method: Method,
        *,
        site: Site | None = None,
        shared: SharedCores | None = None,
        generator: torch.Generator | None = None,
    ) -> NetworkLinear:
        """Adapt `linear` by a method such as ``DoTAConfig(r=16)``.

        Parameters
        ----------
        linear : torch.nn.Linear
            The layer to adapt; frozen, not copied.
        method : Method
            A configuration, or any object with ``network`` and ``initial_cores``.
        site : Site, optional
            What the method may know of the layer, from :func:`find_sites` of its model. By default
            its widths only.
        shared : SharedCores, optional
            The cores that this layer shares with others.
        generator : torch.Generator, optional
            Randomness of the initial cores, torch's global generator by default.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import LoTRConfig
        >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), LoTRConfig(r=4))
        >>> [name for name, p in layer.named_parameters() if p.requires_grad]
        ['update.g', 'shared.u_48x64', 'shared.v_48x64']
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        site = site or Site("", linear.out_features, linear.in_features)
        network = method.network(site)
        cores = method.initial_cores(network, dense_weight(linear).detach(), generator)
        strength = method.strength(site) if hasattr(method, "strength") else None
        return cls(linear, network, cores, shared=shared, strength=strength)

    def delta_weight(self) -> Tensor:
        """The dense update (out_features, in_features); differentiable.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import DoTAConfig
        >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), DoTAConfig(r=4))
        >>> layer.delta_weight().shape, layer.delta_weight().norm().item()
        (torch.Size([48, 64]), 0.0)
        """
        return self.update.delta()

    def as_tnlib(self) -> UpdateView:
        """The update as tnlib objects that share the parameters; see :class:`UpdateView`.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import DoTAConfig
        >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), DoTAConfig(r=4))
        >>> layer.as_tnlib().tensor
        MPO(shape=(48, 64), row_dims=(3, 4, 4), col_dims=(4, 4, 4), ranks=(1, 8, 8, 1), ...)
        """
        return self.update.view()

    def merged(self) -> nn.Linear:
        """A new plain layer with the update added to the weight, in float32 before the cast.

        Over a layer in 4 bits it is a layer with a bfloat16 weight that takes any activations.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import LoTRConfig
        >>> config = LoTRConfig(r=4, init_weights=False)
        >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48).double(), config)
        >>> x = torch.randn(2, 64).double()
        >>> torch.allclose(layer.merged()(x), layer(x))
        True
        """
        total = (dense_weight(self.base) + self.delta_weight()).detach()
        if not self.base.weight.is_floating_point():
            return DenseLinear(total.to(torch.bfloat16), self.base.bias)
        layer = copy.deepcopy(self.base)
        with torch.no_grad():
            layer.weight.copy_(total)
        return layer

    @property
    def adapted(self) -> tuple[nn.Module, list[Update]]:
        """The base layer, and the updates that :meth:`forward` applies to it."""
        return self.base, [self.update]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapted layer to ``x`` of shape (..., in_features)."""
        return adapted_forward(*self.adapted, x)
