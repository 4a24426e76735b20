"""How an update of a weight is applied: in one product with the base layer, or beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tnlib_adapters.execution.base_weight import BaseWeight, DenseWeight
from tnlib_adapters.execution.cost_model import Strategy
from tnlib_adapters.execution.dense_update import DenseUpdate
from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.execution.strategies import Strategies, choose_strategy
from tnlib_adapters.networks.core import Cores, Factors, Maps
from tnlib_adapters.networks.declaration import Declared, State


class WeightUpdate(Declared):
    """Base of the declarations that stand for an update of the weight."""

    additive = True
    # How often the rows of its parts take turns.
    groups = 1

    if TYPE_CHECKING:

        @property
        def dropout(self) -> float:
            """Probability with which the activations that enter the update are dropped."""

        @property
        def strategies(self) -> tuple[Strategies, ...]:
            """The strategies to apply each of its networks."""

        def apply(self, x: Tensor, cores: Cores, anchor: Cores | None = None) -> Tensor:
            """The product of ``x`` with the update."""

        def bound(self, cores: Cores, anchor: Cores | None) -> DenseUpdate:
            """The dense update of given cores, minus that of the anchor if there is one."""

        def matrices(self, strategy: Strategy, cores: Cores) -> list[Tensor]:
            """The factors of a strategy; differentiable."""

        def cut_factors(self, cores: Cores, anchor: Cores | None = None) -> Factors | None:
            """B and A with ``B @ A`` the update, of any rank; None where no cut gives such."""

    def forward_with_base(
        self, x: Tensor, base: BaseWeight, bias: Tensor | None, state: State
    ) -> Tensor | None:
        """The base layer and the update in one go; None where they are better computed apart."""
        if self.dropout and state.training:
            return None
        cached = state.cached_update
        if cached is not None:
            return cached.forward_with_base(x, base, bias)
        n_tokens, training = x.shape[:-1].numel(), torch.is_grad_enabled()
        strategy = choose_strategy(self, base.kind, n_tokens, training=training)
        if strategy.name == "fused":
            fixed, anchor = state.base_and_anchor(base)
            return recomputed_linear(x, fixed, bias, self.bound(state.cores, anchor))
        if strategy.factors and isinstance(base, DenseWeight) and not self.anchored:
            matrices = self.matrices(strategy, state.cores)
            if matrices[0].dtype == x.dtype:
                return factored_linear(x, base.weight, bias, matrices)
        return None

    def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        return y + self.applied(x, state).to(y.dtype)

    def applied(self, x: Tensor, state: State) -> Tensor:
        """The product of ``x`` with the update of an adapter, dropout included."""
        cached = state.cached_update
        if cached is not None and cached.maps:
            return factored_linear(x, None, None, *cached.maps)
        cores = {key: core.to(x.device) for key, core in state.cores.items()}
        x = functional.dropout(x, self.dropout, state.training)
        # Half precision would round away the difference of the two terms.
        if self.anchored and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.apply(x, cores, state.anchor)
        return self.apply(x, cores, state.anchor)

    def delta(self, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """The dense update, of shape (out_features, in_features), in the dtype of the cores.

        Parameters
        ----------
        cores : mapping of str to Tensor
            Values by key.
        anchor : mapping of str to Tensor, optional
            Initial values, required exactly when the network is anchored.

        Examples
        --------
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> network = LoTRConfig(r=4).network(Site("query", 48, 64))
        >>> network.delta(network.initial()).shape
        torch.Size([48, 64])
        """
        self.check_anchor(anchor)
        return self.bound(cores, anchor).dense()

    def check_anchor(self, anchor: Cores | None) -> None:
        """Raise ValueError unless there is an anchor exactly where one is needed."""
        if self.anchored != (anchor is not None):
            needs = "needs" if self.anchored else "takes no"
            raise ValueError(f"this network {needs} anchor (anchored={self.anchored})")

    def low_rank_factors(self, cores: Cores, anchor: Cores | None = None) -> Factors | None:
        """B and A with ``B @ A`` the dense update, never formed.

        Parameters
        ----------
        cores : mapping of str to Tensor
            Values by key.
        anchor : mapping of str to Tensor, optional
            Initial values, where the network is anchored.

        Returns
        -------
        (Tensor, Tensor) or None
            B (out_features, r) with the scale and A (r, in_features), in the dtype of the cores.
            None if the network has no cut (each core of DoTA has rows and columns), or none with r
            up to both widths.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> network = LoTRConfig(r=2).network(Site("query", 6, 4))
        >>> cores = {key: core.double() for key, core in network.initial(zeros=False).items()}
        >>> B, A = network.low_rank_factors(cores)
        >>> B.shape, A.shape, torch.allclose(B @ A, network.delta(cores))
        (torch.Size([6, 2]), torch.Size([2, 4]), True)
        """
        factors = self.cut_factors(cores, anchor)
        if factors is None or len(factors[1]) > min(self.out_features, self.in_features):
            return None
        return factors

    def maps(self, cores: Cores, anchor: Cores | None = None) -> Maps:
        """Matrices whose product is the transposed update: two small ones, or that itself."""
        factors = self.low_rank_factors(cores, anchor)
        entries = self.out_features * self.in_features
        if factors is None or factors[0].numel() + factors[1].numel() >= entries:
            return ([self.delta(cores, anchor).mT],)
        return ([factors[1].mT, factors[0].mT],)
