"""Which strategy every layer takes, and what the others would cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from tnlib.common.table import aligned
from tnlib_adapters.base_model.peft_names import public_name
from tnlib_adapters.execution.base_weight import BaseKind
from tnlib_adapters.execution.cost_model import Cost, Strategy
from tnlib_adapters.execution.strategies import thresholds
from tnlib_adapters.layers.base_layer import fusible_weight
from tnlib_adapters.layers.cached import adapted_layers
from tnlib_adapters.networks.declaration_kinds import Declaration
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
    base : str
        The base weight, to which the update may be added: "dense", "packed" for one that is made
        dense in every call, or "none" where it may not.
    update : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        The declaration of which the network is a part.
    part : int
        Which of its networks.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import LoTRConfig, NetworkLinear
    >>> (layer,) = plans(NetworkLinear.from_linear(torch.nn.Linear(64, 48), LoTRConfig())).layers
    >>> layer.thresholds(training=False)[-1][1].name
    'fused'
    >>> strategy, cost = layer.costs(512, training=False)[0]
    >>> strategy.name, cost.flops
    ('factors', 923648)
    """

    name: str
    layers: int
    network: Network
    base: BaseKind
    update: Declaration
    part: int

    def thresholds(self, *, training: bool) -> list[tuple[int, Strategy]]:
        """The strategies that are chosen, with the number of tokens from which each is."""
        return thresholds(self.update, self.part, self.base, training=training)

    def costs(self, tokens: int, *, training: bool) -> list[tuple[Strategy, Cost]]:
        """Every strategy with its cost for a number of tokens, the fastest first."""
        (own,) = self.network.strategies
        usable = own.usable(self.base, training=training)
        costs = [(one, own.cost(one, tokens, training=training)) for one in usable]
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
        """For every network where its strategies change, and what each costs."""
        return "\n\n".join("\n".join(self._lines(layer)) for layer in self.layers)

    def _lines(self, layer: LayerPlan) -> Iterator[str]:
        network = layer.network
        title = partial(_title, known=network.strategies[0].all)
        yield (
            f"{layer.layers} x {layer.name}, {network.out_features} x {network.in_features}, "
            f"{network.n_params:,} parameters"
        )
        for training, word in ((True, "training"), (False, "inference")):
            chosen = layer.thresholds(training=training)
            names = ", ".join(f"{title(one)} from {start:,}" for start, one in chosen)
            yield f"  {word}, by tokens: {names}"
        rows = [(f"  {self.tokens:,} tokens", "forward", "backward", "saved", "predicted")]
        for training in (True, False):
            for one, cost in layer.costs(self.tokens, training=training):
                rows.append(
                    (
                        f"  {'training' if training else 'inference'}: {title(one)}"
                        f"{', checkpointed' if one.checkpointed else ''}",
                        f"{cost.flops:.3g}",
                        f"{cost.backward_flops:.3g}" if training else "",
                        f"{cost.saved_bytes / 1024:,.0f} KiB" if training else "",
                        f"{1e3 * cost.seconds:.3g} ms",
                    )
                )
        yield aligned(rows)


def plans(model: nn.Module, tokens: int = 512) -> Plans:
    """Tell how the updates of a model's linear layers are applied, and why.

    The times are predicted at nominal rates, those of two cores of a server processor; what they
    say is which strategy is faster, not how fast it is on another machine.

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
    1 x q_proj, 768 x 768, 12,352 parameters
      training, by tokens: factors 768-8-8-768 from 1, factors 768-8-768 from 341
      inference, by tokens: factors 768-8-8-768 from 1, factors 768-8-768 from 769, fused from 2,466
      512 tokens                      forward   backward  saved   predicted
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
            weight = fusible_weight(base) if update.additive else None
            kind: BaseKind = "none" if weight is None else weight.kind
            for part, (suffix, network) in enumerate(update.network.networks):
                title = re.sub(r"\d+", "*", public_name(name)) + suffix
                key = (title, network.strategies[0].subject, kind)
                count = found[key][1] + 1 if key in found else 1
                plan = LayerPlan(title, count, network, kind, update.network, part)
                found[key] = plan, count
    return Plans(tuple(plan for plan, _ in found.values()), tokens)


def _title(strategy: Strategy, known: Sequence[Strategy]) -> str:
    """The name of a strategy, with what tells it apart: widths of a chain, or a number."""
    factors = strategy.factors
    if factors:
        widths = (factors[0].shape[0], *(factor.shape[1] for factor in factors))
        return f"{strategy.name} {'-'.join(map(str, widths))}"
    orders = list(dict.fromkeys(one.steps.order for one in known if one.steps and not one.factors))
    if strategy.steps is None or len(orders) == 1:
        return strategy.name
    return f"{strategy.name} ({orders.index(strategy.steps.order) + 1})"
