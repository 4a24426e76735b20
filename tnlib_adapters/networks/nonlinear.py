"""Adapters that are no update of a weight: a bottleneck after a layer, a layer in its place.

Their cores are declared, counted and kept as those of a :class:`Network`; they are called with
activations only and cannot be merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.strategies import Strategies
from tnlib_adapters.networks.core import Core, Cores, Maps
from tnlib_adapters.networks.declaration import Declared, State
from tnlib_adapters.networks.initializers import zeros
from tnlib_adapters.networks.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class BottleneckAdapter(Declared):
    """A series adapter, h + scale * up(relu(down(dropout(h)))), both maps with a bias.

    Attributes
    ----------
    down, up : Network
        From the width of h to the bottleneck and back; no core has the same key in both.
    side : str
        Whether h is the "input" or the "output" of the layer.
    scale : float
        Factor of what is added.
    dropout : float
        Probability with which entries of h are dropped in training.
    additive_form : str
        What to set for an update of the weight instead; errors say it.
    weight_gain : float
        Root mean square of what the layer's weight makes of independent features of variance one.
    bias_scale : float
        Factor of the bias of `up`.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoRETTAConfig, Site
    >>> config = LoRETTAConfig(variant="adp", bottleneck=8)
    >>> adapter = config.network(Site("attention.output.dense", 64, 64))
    >>> adapter.side, adapter.down.out_features, adapter.n_params
    ('output', 8, 632)
    >>> cores, h = adapter.initial(), torch.randn(2, 64)
    >>> torch.equal(adapter.shift(h, cores, training=False), h)
    True
    """

    down: Network
    up: Network
    side: str = "output"
    scale: float = 1.0
    dropout: float = 0.0
    additive_form: str = ""
    weight_gain: float = 1.0
    bias_scale: float = 1.0

    title = "bottleneck adapter"
    in_series_with_weight = True

    @cached_property
    def cores(self) -> tuple[Core, ...]:
        """The cores of both maps, and their biases."""
        biases = (Core("down_bias", ("down",), zeros), Core("up_bias", ("up",), zeros))
        return (*self.down.cores, *self.up.cores, *biases)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by key."""
        biases = {"down_bias": (self.down.out_features,), "up_bias": (self.up.out_features,)}
        return self.down.shapes | self.up.shapes | biases

    def scaled(self, factor: float) -> BottleneckAdapter:
        """The adapter with what it adds multiplied by a number."""
        return replace(self, scale=self.scale * factor)

    def check_fits(self, out_features: int, in_features: int) -> None:
        """Raise ValueError if the layer has another width on the adapter's side."""
        width = in_features if self.side == "input" else out_features
        ends = self.down.in_features, self.up.out_features
        if ends != (width, width):
            raise ValueError(
                f"the adapter maps {ends[0]} to {ends[1]} features, the layer's {self.side} has "
                f"{width}"
            )

    @property
    def networks(self) -> tuple[tuple[str, Network], ...]:
        """The networks that are contracted, with what tells them apart."""
        return ((", down", self.down), (", up", self.up))

    @property
    def gain_in_series(self) -> float:  # type: ignore[override]
        """Its factor, half of what comes out of the bottleneck cut off, and the layer's weight.

        It stands for a change of W by W up down or up down W. Its mean square is that of up down
        times the `weight_gain` of W squared.
        """
        return self.scale * math.sqrt(0.5) * self.weight_gain

    def beside(self, weight: Tensor) -> BottleneckAdapter:
        """The adapter of a layer of this weight, (out_features, in_features)."""
        if weight.is_meta:
            return self
        size = float(torch.linalg.vector_norm(weight.detach().float()))
        gain = size / math.sqrt(len(weight))
        return replace(self, weight_gain=gain) if 0 < gain < math.inf else self

    def bias_gains(self) -> dict[str, float]:
        """How far the layer's output moves when the bias of `up` moves by one."""
        return {"up_bias": self.scale * (self.weight_gain if self.side == "input" else 1.0)}

    def rescaled(self, multipliers: Mapping[str, float]) -> BottleneckAdapter:
        """The same function of cores that were divided by multipliers, by key."""
        down, up = self.down.rescaled(multipliers), self.up.rescaled(multipliers)
        bias_scale = self.bias_scale * multipliers.get("up_bias", 1.0)
        return replace(self, down=down, up=up, bias_scale=bias_scale)

    @property
    def strategies(self) -> tuple[Strategies, ...]:
        """The strategies to apply each of them."""
        return self.down.strategies + self.up.strategies

    def transform_input(self, x: Tensor, state: State) -> Tensor:
        """What the base layer gets instead of ``x``."""
        return self._shifted(x, state) if self.side == "input" else x

    def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        return y if self.side == "input" else self._shifted(y, state)

    def _shifted(self, h: Tensor, state: State) -> Tensor:
        cached = state.cached_update
        maps = None if cached is None else cached.maps
        return self.shift(h, state.cores, maps, training=state.training)

    def plan_strategies(self) -> None:
        """Work out all strategies now."""
        self.down.plan_strategies()
        self.up.plan_strategies()

    def maps(self, cores: Cores, anchor: Cores | None = None) -> Maps:
        """The matrices of either map, for :meth:`shift`."""
        return self.down.maps(cores) + self.up.maps(cores)

    def shift(
        self,
        h: Tensor,
        cores: Cores,
        maps: Maps | None = None,
        *,
        training: bool,
    ) -> Tensor:
        """Return ``h`` with the adapter's output added; shape and dtype of ``h``."""
        z = h.to(cores["up_bias"].dtype)
        z = functional.dropout(z, self.dropout, training)
        down = mapped(self.down, z, cores, None if maps is None else maps[0])
        z = functional.relu(down + cores["down_bias"])
        up = mapped(self.up, z, cores, None if maps is None else maps[1])
        total = torch.add(up, cores["up_bias"], alpha=self.bias_scale)
        return h + (self.scale * total).to(h.dtype)

    def __repr__(self) -> str:
        """Both maps in turn."""
        title = f"Bottleneck adapter on the {self.side}, {self.n_params:,} parameters"
        return f"{title}\n{self.down}\n{self.up}"


@dataclass(frozen=True, eq=False, repr=False)
class ReplacedLinear(Declared):
    """A layer whose weight is a network, with a bias, in the place of the base layer.

    Attributes
    ----------
    network : Network
        The weight.
    additive_form : str
        What to set for an update of the weight instead; errors say it.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoRETTAConfig, Site
    >>> layer = LoRETTAConfig(tt_head=True).network(Site("pooler.dense", 64, 64))
    >>> type(layer).__name__, layer.n_params
    ('ReplacedLinear', 544)
    >>> layer.replace(torch.randn(2, 64), layer.initial()).shape
    torch.Size([2, 64])
    """

    network: Network
    additive_form: str = ""

    title = "replaced layer"

    @cached_property
    def cores(self) -> tuple[Core, ...]:
        """The cores of the weight, and the bias."""
        return (*self.network.cores, Core("bias", ("out",), zeros))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by key."""
        return self.network.shapes | {"bias": (self.network.out_features,)}

    def scaled(self, factor: float) -> ReplacedLinear:
        """Raise TypeError: it adds nothing that could be multiplied."""
        raise TypeError("a tensor train in the place of a layer has no scale; set tt_head=False")

    def check_fits(self, out_features: int, in_features: int) -> None:
        """Raise ValueError if the layer has other widths."""
        self.network.check_fits(out_features, in_features)

    @property
    def networks(self) -> tuple[tuple[str, Network], ...]:
        """The networks that are contracted, with what tells them apart."""
        return (("", self.network),)

    def rescaled(self, multipliers: Mapping[str, float]) -> ReplacedLinear:
        """The same function of cores that were divided by multipliers, by key."""
        return replace(self, network=self.network.rescaled(multipliers))

    @property
    def strategies(self) -> tuple[Strategies, ...]:
        """The strategies to apply it."""
        return self.network.strategies

    def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        cached = state.cached_update
        maps = None if cached is None else cached.maps
        return self.replace(x, state.cores, maps).to(y.dtype)

    def plan_strategies(self) -> None:
        """Work out all strategies now."""
        self.network.plan_strategies()

    def maps(self, cores: Cores, anchor: Cores | None = None) -> Maps:
        """The matrices of the weight, for :meth:`replace`."""
        return self.network.maps(cores)

    def replace(self, x: Tensor, cores: Cores, maps: Maps | None = None) -> Tensor:
        """The layer applied to ``x`` of shape (..., in_features), in its dtype."""
        y = mapped(
            self.network, x.to(cores["bias"].dtype), cores, None if maps is None else maps[0]
        )
        return (y + cores["bias"]).to(x.dtype)

    def __repr__(self) -> str:
        """The network of the weight."""
        return f"Replaced linear layer, {self.n_params:,} parameters\n{self.network}"


def mapped(network: Network, x: Tensor, cores: Cores, matrices: Sequence[Tensor] | None) -> Tensor:
    """The network's product with ``x``, by the matrices of the cache where they are given."""
    if matrices is None:
        return network.apply(x, cores)
    return factored_linear(x, None, None, matrices)
