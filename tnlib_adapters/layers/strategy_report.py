"""Which way every layer takes, and what the others would cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from tnlib.common.table import aligned
from tnlib_adapters.base_model.names import public_name
from tnlib_adapters.execution.cost_model import Cost, Route
from tnlib_adapters.layers.base_layer import quantized_weight, takes_updates
from tnlib_adapters.layers.cached import adapted_layers
from tnlib_adapters.networks.network import Network


@dataclass(frozen=True)
class LayerPlan:
    """How one network is applied, in all layers that have it.

    Attributes
    ----------
    name : str
        Name of the layers, with ``*`` for numbers, and of the map where a layer has two.
    layers : int
        How many layers there are.
    network : Network
        The network of one of them.
    fusible : bool
        Whether its update may be added to the base weight.
    packed : bool
        Whether that weight is in 4 bits, and made dense in every call.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear
    >>> (layer,) = plans(NetworkLinear.from_linear(torch.nn.Linear(64, 48), LoTRConfig())).layers
    >>> layer.starts(training=False)[-1][1].name
    'fused'
    >>> way, cost = layer.costs(512, training=False)[0]
    >>> way.name, cost.flops
    ('factors', 923648)
    """

    name: str
    layers: int
    network: Network
    fusible: bool
    packed: bool = False

    def starts(self, *, training: bool) -> list[tuple[int, Route]]:
        """The ways that are taken, with the number of tokens from which each is."""
        routes = self.network.routes
        starts, ways = routes.table[training, self.fusible]
        found = [(max(start, 1), way) for start, way in zip(starts, ways, strict=True)]
        if not (self.packed and training):
            return found
        packed = [(start, routes.over_packed(start, training=True)) for start, _ in found]
        last = [None, *(way for _, way in packed)]
        return [pair for pair, before in zip(packed, last, strict=False) if pair[1] is not before]

    def costs(self, tokens: int, *, training: bool) -> list[tuple[Route, Cost]]:
        """Every way with its cost for a number of tokens, the fastest first."""
        routes = self.network.routes
        usable = routes.usable(training=training, fusible=self.fusible)
        ways = [routes.ways[k] for k in usable]
        costs = [(way, routes.cost(way, tokens, training=training)) for way in ways]
        return sorted(costs, key=lambda pair: pair[1].seconds)


@dataclass(frozen=True)
class Plans:
    """The plans of a model; printing it shows tables.

    Attributes
    ----------
    layers : tuple of LayerPlan
        One for every network that differs.
    tokens : int
        Number of tokens for which the costs are shown.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear
    >>> found = plans(NetworkLinear.from_linear(torch.nn.Linear(64, 48), LoTRConfig()), tokens=32)
    >>> [(layer.network.n_params, layer.layers) for layer in found.layers], found.tokens
    ([(960, 1)], 32)
    """

    layers: tuple[LayerPlan, ...]
    tokens: int

    def __str__(self) -> str:
        """For every network where its ways change, and what each costs."""
        return "\n\n".join("\n".join(self._lines(layer)) for layer in self.layers)

    def _lines(self, layer: LayerPlan) -> Iterator[str]:
        network = layer.network
        title = partial(_title, ways=network.routes.ways)
        yield (
            f"{layer.layers} x {layer.name}, {network.out_features} x {network.in_features}, "
            f"{network.n_params:,} values"
        )
        for training, word in ((True, "training"), (False, "inference")):
            starts = layer.starts(training=training)
            ways = ", ".join(f"{title(way)} from {start:,}" for start, way in starts)
            yield f"  {word}, by tokens: {ways}"
        rows = [(f"  {self.tokens:,} tokens", "forward", "backward", "kept", "predicted")]
        for training in (True, False):
            for way, cost in layer.costs(self.tokens, training=training):
                rows.append(
                    (
                        f"  {'training' if training else 'inference'}: {title(way)}"
                        f"{', rebuilt' if way.rebuilt else ''}",
                        f"{cost.flops:.3g}",
                        f"{cost.backward_flops:.3g}" if training else "",
                        f"{cost.kept_bytes / 1024:,.0f} KiB" if training else "",
                        f"{1e3 * cost.seconds:.3g} ms",
                    )
                )
        yield aligned(rows)


def plans(model: nn.Module, tokens: int = 512) -> Plans:
    """Tell how the updates of a model are applied, and why.

    The times are predicted at nominal rates, those of two cores of a server processor; what they
    say is which way is faster, not how fast it is on another machine.

    Parameters
    ----------
    model : torch.nn.Module
        With layers adapted by these methods.
    tokens : int
        Number of tokens for which costs are shown.

    Raises
    ------
    ValueError
        If the model has no adapted layers, or `tokens` is not positive.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear, plans
    >>> layer = NetworkLinear.from_linear(torch.nn.Linear(768, 768), LoTRConfig(r=8))
    >>> print(plans(torch.nn.ModuleDict({"q_proj": layer}), tokens=512))
    1 x q_proj, 768 x 768, 12,352 values
      training, by tokens: factors 768-8-8-768 from 1, factors 768-8-768 from 341
      inference, by tokens: factors 768-8-8-768 from 1, factors 768-8-768 from 769, fused from 2,466
      512 tokens                      forward   backward  kept    predicted
      training: factors 768-8-768     1.27e+07  2.54e+07  16 KiB  1.06 ms
      training: factors 768-8-8-768   1.26e+07  2.53e+07  32 KiB  1.06 ms
      training: fused                 9.54e+06  6.33e+08  0 KiB   10.1 ms
      training: dense                 6.14e+08  1.24e+09  0 KiB   20.4 ms
      inference: factors 768-8-8-768  1.26e+07                    0.349 ms
      inference: factors 768-8-768    1.27e+07                    0.35 ms
      inference: fused                9.54e+06                    2.5 ms
      inference: dense                6.14e+08                    8.36 ms
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens must be a positive int, got {tokens!r}")
    found: dict[tuple[object, ...], tuple[LayerPlan, int]] = {}
    for name, layer in adapted_layers(model).items():
        base, updates = layer.adapted
        for update in updates:
            for part, network in update.network.networks:
                fusible = update.additive and takes_updates(base)
                title = re.sub(r"\d+", "*", public_name(name)) + part
                packed = quantized_weight(base) is not None
                key = (title, network.routes.subject, fusible, packed)
                count = found[key][1] + 1 if key in found else 1
                found[key] = LayerPlan(title, count, network, fusible, packed), count
    return Plans(tuple(plan for plan, _ in found.values()), tokens)


def _title(way: Route, ways: Sequence[Route]) -> str:
    """The name of a way, with what tells it apart from others: widths of a chain, or a number."""
    if way.factors:
        widths = (way.factors[0].shape[0], *(factor.shape[1] for factor in way.factors))
        return f"{way.name} {'-'.join(map(str, widths))}"
    orders = list(dict.fromkeys(w.steps.order for w in ways if w.steps and not w.factors))
    if way.steps is None or len(orders) == 1:
        return way.name
    return f"{way.name} ({orders.index(way.steps.order) + 1})"
