"""The updates of one adapter to a weight of all experts of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tnlib_adapters.execution.expert_products import Routing
from tnlib_adapters.layers.shared_cores import SharedCores
from tnlib_adapters.layers.stored_cores import StoredCores
from tnlib_adapters.networks.core import Factors
from tnlib_adapters.networks.expert_network import ExpertNetwork


class ExpertUpdate(StoredCores):
    """The cores of an :class:`ExpertNetwork`, for all experts or some.

    Parameters
    ----------
    network : ExpertNetwork
        Declaration, for as many experts as are adapted.
    shared : SharedCores, optional
        Where the cores of groups are.
    n_experts : int
        How many experts the weight has.
    chosen : sequence of int, optional
        Ascending numbers of those that are adapted; all by default.
    **kwargs
        As for :class:`StoredCores`.
    """

    network: ExpertNetwork  # type: ignore[assignment]
    additive = True

    def __init__(
        self,
        network: ExpertNetwork,
        shared: SharedCores | None = None,
        *,
        n_experts: int,
        chosen: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, shared, **kwargs)  # type: ignore[arg-type]
        self.n_experts = n_experts
        self.chosen = None if chosen is None else tuple(chosen)

    def slot(self, expert: int) -> int | None:
        """Number of an expert among the adapted ones; None if it is not."""
        if self.chosen is None:
            return expert if expert < self.n_experts else None
        return self.chosen.index(expert) if expert in self.chosen else None

    def apply_one(self, x: Tensor, expert: int) -> Tensor | None:
        """The product of ``x`` (..., in_features) with the update of one expert; None if zero."""
        self.check_initialized()
        slot = self.slot(expert)
        if slot is None:
            return None
        x = self.network.dropped(x, self.training)
        return self.network.apply_one(x, self.cores, self.anchor, slot)

    def apply_rows(self, x: Tensor, experts: Tensor) -> Tensor:
        """The products of rows ``x`` (rows, in_features) with the updates of their experts."""
        return self._routed(x, Routing(self._slots(experts), partial=self.chosen is not None))

    def apply_groups(self, x: Tensor, ends: Tensor, source: Tensor | None = None) -> Tensor:
        """The same for rows that lie sorted by their experts.

        Parameters
        ----------
        x : Tensor, shape (n, in_features)
            Activations.
        ends : Tensor of int, shape (n_experts,)
            The row behind the last one of every expert. Later rows get zeros.
        source : Tensor of int64, shape (rows,), optional
            Which of the activations every row is; by default they are the rows.
        """
        ends = ends.long()
        bounds = torch.stack([torch.cat([ends.new_zeros(1), ends[:-1]]), ends], 1)
        if self.chosen is not None:
            bounds = bounds[torch.tensor(self.chosen, device=ends.device)]
        rows = torch.arange(len(x if source is None else source), device=ends.device)
        slots = self._slots(torch.searchsorted(ends, rows, right=True))
        return self._routed(x, Routing(slots, bounds, partial=True), source)

    def _routed(self, x: Tensor, routing: Routing, source: Tensor | None = None) -> Tensor:
        self.check_initialized()
        x = self.network.dropped(x, self.training)
        return self.network.apply(x, self.cores, self.anchor, routing, source)

    def _slots(self, experts: Tensor) -> Tensor:
        """Numbers of experts among the adapted ones, and how many those are for any other."""
        if self.chosen is None:
            return experts
        found = torch.full((self.n_experts + 1,), len(self.chosen), device=experts.device)
        places = torch.tensor(self.chosen, device=experts.device)
        found[places] = torch.arange(len(self.chosen), device=experts.device)
        return found[experts]

    def delta(self, expert: int) -> Tensor:
        """The dense update of one expert, (out_features, in_features); differentiable."""
        self.check_initialized()
        slot = self.slot(expert)
        if slot is None:
            some = next(iter(self.stored.values()))
            return some.new_zeros(self.network.out_features, self.network.in_features)
        return self.network.delta(self.cores, self.anchor, slot)

    def cut_factors(self, expert: int) -> Factors | None:
        """B and A with ``B @ A`` the update of one expert; None where no cut gives such.

        Of an expert that is not adapted they have rank 0.
        """
        self.check_initialized()
        slot = self.slot(expert)
        if slot is None:
            some = next(iter(self.stored.values()))
            out, width = self.network.out_features, self.network.in_features
            return some.new_zeros(out, 0), some.new_zeros(0, width)
        return self.network.cut_factors(self.cores, self.anchor, slot)
