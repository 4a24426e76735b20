"""The updates of all experts of a layer, as one network with a leg for the expert.

A mixture of experts holds a weight as one array (experts, rows, columns). Its update is a network
some of whose cores have a leg `expert`; the others are shared by all experts. The update of one
expert is the network fixed at an index of that leg, as a layer's is in a core of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.execution.expert_products import Routing
from tnlib_adapters.networks.core import Core, Cores, Factors
from tnlib_adapters.networks.declaration import Declared
from tnlib_adapters.networks.declaration_kinds import Declaration
from tnlib_adapters.networks.expert_chain import Chain, chain_of
from tnlib_adapters.networks.network import Network

# The leg of a core that holds the values of all experts.
EXPERT = "expert"


@dataclass(frozen=True, eq=False, repr=False)
class ExpertNetwork(Declared):
    """A network for every expert of a layer; :func:`over_experts` makes it of a declaration.

    Attributes
    ----------
    network : Network
        The network of the first expert: fixed at 0 of the leg ``expert``, if cores have it.
    n_experts : int
        How many experts it is for.
    single : Network, optional
        What was declared for one expert, where the declaration had no leg for them.

    Examples
    --------
    >>> from tnlib_adapters import LoTRConfig, Site
    >>> site = Site("experts.down_proj", 48, 64, experts=4)
    >>> updates = over_experts(LoTRConfig(r=4).network(site), 4)
    >>> updates.shapes
    {'u_experts_48x64': (48, 4), 'g': (4, 4, 4), 'v_experts_48x64': (64, 4)}
    """

    network: Network
    n_experts: int
    single: Network | None = None

    additive = True
    title = "network of experts"

    @property
    def cores(self) -> tuple[Core, ...]:
        """All cores, each once."""
        return self.network.cores

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by its key; those of experts have them first."""
        return self.network.shapes

    @property
    def networks(self) -> tuple[tuple[str, Network], ...]:
        """The network of one expert, as it is contracted."""
        return (("", self.network),)

    @property
    def out_features(self) -> int:
        """Rows of the update of one expert."""
        return self.network.out_features

    @property
    def in_features(self) -> int:
        """Columns of the update of one expert."""
        return self.network.in_features

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        """Whether the value at the frozen initial cores is subtracted."""
        return self.network.anchored

    @property
    def dropout(self) -> float:
        """Probability with which the activations that enter the update are dropped."""
        return self.network.dropout

    def rescaled(self, multipliers: Mapping[str, float]) -> ExpertNetwork:
        """The same function of cores that were divided by multipliers, by key."""
        return replace(self, network=self.network.rescaled(multipliers))

    def scaled(self, factor: float) -> ExpertNetwork:
        """The declaration with its updates multiplied by a number."""
        return replace(self, network=self.network.scaled(factor))

    def plan_strategies(self) -> None:
        """Work out now how it is applied: a graph that is compiled cannot."""
        _ = self.chain
        self.alone.plan_strategies()

    @cached_property
    def chain(self) -> Chain | None:
        """How rows of many experts go through it; None where they go expert by expert."""
        return chain_of(self.network.unanchored, EXPERT)

    @property
    def starts_shared(self) -> bool:
        """Whether all experts share what is done first with activations."""
        return self.chain is not None and not self.chain.factors[0].of_expert

    @cached_property
    def alone(self) -> Network:
        """The network of one expert, of the cores that :meth:`of_expert` gives."""
        sizes = {leg: 1 if leg == EXPERT else n for leg, n in self.network.sizes.items()}
        return replace(self.network, sizes=sizes)

    def at(self, expert: int) -> Network:
        """What is declared for one expert: with its own cores alone, or fixed at its index."""
        if self.single is not None:
            return self.single
        fixed = {**self.network.fixed_indices, EXPERT: expert}
        return replace(self.network, fixed_indices=fixed)

    def gathered(self, cores: Sequence[Cores]) -> dict[str, Tensor]:
        """The cores of all experts, of those of the networks that :meth:`at` gives."""
        own = {core.key for core in self.cores if EXPERT in core.legs}
        stacked = own if self.single is not None else set()
        return {
            key: torch.stack([found[key] for found in cores]) if key in stacked else cores[0][key]
            for key in self.shapes
        }

    def of_expert(self, cores: Cores, expert: int) -> dict[str, Tensor]:
        """The cores of one expert, the shared ones among them."""
        found = {}
        for core in self.cores:
            value = cores[core.key]
            found[core.key] = value
            if EXPERT in core.legs:
                found[core.key] = value.narrow(core.legs.index(EXPERT), expert, 1)
        return found

    def delta(self, cores: Cores, anchor: Cores | None, expert: int) -> Tensor:
        """The dense update of one expert, (out_features, in_features); differentiable."""
        start = None if anchor is None else self.of_expert(anchor, expert)
        return self.alone.delta(self.of_expert(cores, expert), start)

    def cut_factors(self, cores: Cores, anchor: Cores | None, expert: int) -> Factors | None:
        """B and A with ``B @ A`` the update of one expert; None where no cut gives such."""
        start = None if anchor is None else self.of_expert(anchor, expert)
        return self.alone.cut_factors(self.of_expert(cores, expert), start)

    def apply_one(self, x: Tensor, cores: Cores, anchor: Cores | None, expert: int) -> Tensor:
        """The product of ``x`` (..., in_features) with the update of one expert."""
        start = None if anchor is None else self.of_expert(anchor, expert)
        return self.alone.apply(x, self.of_expert(cores, expert), start)

    def apply(
        self,
        x: Tensor,
        cores: Cores,
        anchor: Cores | None,
        routing: Routing,
        source: Tensor | None = None,
    ) -> Tensor:
        """The products of rows with the updates of their experts.

        Parameters
        ----------
        x : Tensor, shape (n, in_features)
            Activations.
        cores, anchor : mapping of str to Tensor
            Values by key.
        routing : Routing
            The expert of every row.
        source : Tensor of int64, shape (rows,), optional
            Which of the activations every row is; by default they are the rows themselves.

        Returns
        -------
        Tensor, shape (rows, out_features)
            In the dtype of the cores, or autocast's.
        """
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            with torch.autocast(x.device.type, enabled=False):
                if anchor is None:  # half precision would round away the difference of two terms
                    x, cores = x.to(dtype), {key: v.to(dtype) for key, v in cores.items()}
                return self.apply(x, cores, anchor, routing, source)
        x = x.to(cores[self.cores[0].key].dtype)
        if self.chain is None:
            rows = x if source is None else x.index_select(0, source)
            return self._expert_by_expert(rows, cores, anchor, routing)
        y = self.chain.apply(x, self._values(cores), routing, source)
        if anchor is not None:
            y = y - self.chain.apply(x, self._values(anchor), routing, source)
        scale = self.network.scale
        y = y if scale == 1.0 else y * scale
        if routing.partial and not any(factor.of_expert for factor in self.chain.factors):
            y = y * (routing.slots < self.n_experts).unsqueeze(1).to(y.dtype)
        return y

    def _values(self, cores: Cores) -> list[Tensor]:
        """The cores, fixed where the network is, but for the leg of the experts."""
        taken = []
        for core in self.cores:
            value = cores[core.key]
            for axis in reversed(range(len(core.legs))):
                leg = core.legs[axis]
                if leg in self.network.fixed_indices and leg != EXPERT:
                    value = value.select(axis, self.network.fixed_indices[leg])
            taken.append(value)
        return taken

    def _expert_by_expert(
        self, rows: Tensor, cores: Cores, anchor: Cores | None, routing: Routing
    ) -> Tensor:
        y = rows.new_zeros(len(rows), self.out_features)
        for expert in torch.unique(routing.slots).tolist():
            if expert < self.n_experts:
                own = torch.nonzero(routing.slots == expert).squeeze(1)
                part = self.apply_one(rows.index_select(0, own), cores, anchor, expert)
                y = y.index_copy(0, own, part.to(y.dtype))
        return y

    def dropped(self, x: Tensor, training: bool) -> Tensor:
        """The activations that enter the update."""
        return functional.dropout(x, self.dropout, training) if self.dropout else x

    def __repr__(self) -> str:
        """The network, and for how many experts it is."""
        return f"{self.n_experts} experts: {self.network}"


def expert_by_expert(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Declarations by name with those of experts in the place of an :class:`ExpertNetwork`.

    Those of a weight ``name`` are called ``name[0]``, ``name[1]`` and so on.
    """
    found: dict[str, Any] = {}
    for name, network in networks.items():
        if isinstance(network, ExpertNetwork):
            found |= {key: network.at(e) for e, key in enumerate(expert_keys(name, network))}
        else:
            found[name] = network
    return found


def expert_keys(name: str, network: Any) -> list[str]:
    """What :func:`expert_by_expert` calls a declaration: of experts one name for each."""
    if not isinstance(network, ExpertNetwork):
        return [name]
    return [f"{name}[{e}]" for e in range(network.n_experts)]


def together(name: str, network: Any, cores: Mapping[str, Cores]) -> Cores:
    """The cores of a declaration, of those by the names that :func:`expert_keys` gives."""
    if not isinstance(network, ExpertNetwork):
        return cores[name]
    return network.gathered([cores[key] for key in expert_keys(name, network)])


def over_experts(declaration: Declaration, n_experts: int) -> ExpertNetwork:
    """The updates of all experts, of what a method declares for a weight of one.

    A declaration whose cores have a leg ``expert`` is taken as it is. In any other the cores of one
    weight become cores of one expert, and those of sharing groups are shared by the experts too.

    Raises
    ------
    TypeError
        If the declaration is not a network.
    ValueError
        If its leg ``expert`` has another size, is not fixed at 0, or is not the first of a core.
    """
    if not isinstance(declaration, Network):
        raise TypeError(
            f"a {declaration.title} cannot adapt experts, which take updates of their weights"
            + (f"; set {declaration.additive_form}" if declaration.additive_form else "")
        )
    if EXPERT not in declaration.sizes:
        cores = tuple(
            core if core.group else replace(core, legs=(EXPERT, *core.legs))
            for core in declaration.cores
        )
        network = _with_leg(declaration, cores, n_experts)
        return ExpertNetwork(network, n_experts, single=declaration)
    place = declaration.fixed_indices.get(EXPERT)
    first = all(core.legs.index(EXPERT) == 0 for core in declaration.cores if EXPERT in core.legs)
    if declaration.sizes[EXPERT] != n_experts or place != 0 or not first:
        raise ValueError(
            f"the leg {EXPERT!r} has size {declaration.sizes[EXPERT]} and index {place}; it has to "
            f"be the first leg of its cores, of size site.experts = {n_experts}, with "
            "fixed_indices={'expert': 0}"
        )
    return ExpertNetwork(declaration, n_experts)


def _with_leg(network: Network, cores: Sequence[Core], n_experts: int) -> Network:
    if not any(EXPERT in core.legs for core in cores):
        return network
    return replace(
        network,
        cores=tuple(cores),
        sizes={**network.sizes, EXPERT: n_experts},
        fixed_indices={**network.fixed_indices, EXPERT: 0},
    )
