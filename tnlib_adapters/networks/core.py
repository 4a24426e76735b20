"""Cores, and what every declaration of some can say of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tnlib.common.deprecation import renamed_fields
from tnlib_adapters.execution.base_weight import BaseWeight, DenseWeight
from tnlib_adapters.execution.cost_model import Strategy
from tnlib_adapters.execution.dense_update import DenseUpdate
from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.execution.strategies import Strategies, choose_strategy
from tnlib_adapters.networks.initializers import Initializer, nonzero, normal

Cores = Mapping[str, Tensor]
# Chains of matrices, one for each map of an adapter.
Maps = tuple[Sequence[Tensor], ...]
Factors = tuple[Tensor, Tensor]


@renamed_fields(start="initializer")
@dataclass(frozen=True)
class Core:
    """One core of a network.

    Attributes
    ----------
    name : str
        Its name, an identifier.
    legs : tuple of str
        Names of its legs, in the order of its axes.
    initializer : Initializer
        Distribution of its initial values.
    group : str, optional
        None for a core of one weight; otherwise the name of a sharing group, for example "model":
        cores of one name and group are one tensor.
    frozen : bool
        Whether it is kept as it starts.

    Examples
    --------
    >>> from tnlib_adapters import normal
    >>> core = Core("u", ("out", "rank"), normal(0.02), group="768x768")
    >>> core.key, str(core.initializer), core.frozen
    ('u_768x768', 'N(0, 0.02^2)', False)
    """

    name: str
    legs: tuple[str, ...]
    initializer: Initializer = normal()  # noqa: RUF009 (an immutable value)
    group: str | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"core names must be identifiers, got {self.name!r}")
        if self.group is not None and not re.fullmatch(r"\w+", self.group):
            raise ValueError(f"groups are named by letters, digits and _, got {self.group!r}")

    @property
    def key(self) -> str:
        """The name under which its values are kept: with the group, where it has one."""
        return self.name if self.group is None else f"{self.name}_{self.group}"

    def initialized(
        self, shape: tuple[int, ...], generator: torch.Generator | None, *, zeros: bool
    ) -> Tensor:
        """Draw it; without `zeros`, small values in the place of zeros."""
        drawn = self.initializer if zeros else nonzero(self.initializer, shape)
        return drawn.draw(shape, generator)


class State(Protocol):
    """The values of an adapter, with which its declaration is applied."""

    training: bool

    @property
    def cores(self) -> Cores:
        """Values by key."""

    @property
    def anchor(self) -> Cores | None:
        """Initial values, where the declaration is anchored."""

    @property
    def cached(self) -> Cached | None:
        """What was computed of the values beforehand, where they are still the same."""

    def fixed(self, base: BaseWeight) -> tuple[BaseWeight, Cores | None]:
        """A weight that stays while the values train, and the initial values to subtract."""


class Cached(Protocol):
    """What is computed once for many calls."""

    @property
    def maps(self) -> Maps:
        """Chains of matrices, one for each map; empty where they are part of a weight."""

    def fused_forward(self, x: Tensor, base: BaseWeight, bias: Tensor | None) -> Tensor | None:
        """The base layer and the update in one go; None where they do not fit each other."""


class Declared:
    """Base of the declarations; subclasses say which cores there are, with which shapes."""

    if TYPE_CHECKING:

        @property
        def cores(self) -> tuple[Core, ...]:
            """All cores, each once."""

        @property
        def shapes(self) -> dict[str, tuple[int, ...]]:
            """Shape of every core by its key, shared ones in full."""

        @property
        def out_features(self) -> int:
            """Rows of the update."""

        @property
        def in_features(self) -> int:
            """Columns of the update."""

        def maps(self, cores: Cores, anchor: Cores | None = None) -> Maps:
            """What is computed of the cores once for many calls: the matrices of every map."""

        def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
            """What the layer gives instead of the base layer's ``y`` on ``x``."""

    # Whether it is an update of the weight, so that it has a dense form and merges.
    additive: ClassVar[bool] = False
    # What it is called in errors.
    title = "network"
    # What to set for an update of the weight, where it is none.
    additive_form = ""
    # Whether the value at the frozen initial cores is subtracted, and W minus it cached.
    anchored = False
    residual = False

    @property
    def n_params(self) -> int:
        """Trainable parameters: those of its cores, shared ones in full, without the anchor."""
        shapes = self.shapes
        return sum(math.prod(shapes[core.key]) for core in self.cores if not core.frozen)

    def initial(
        self, generator: torch.Generator | None = None, *, zeros: bool = True
    ) -> dict[str, Tensor]:
        """Draw initial cores, by key; without `zeros`, small values in the place of zeros."""
        shapes = self.shapes
        return {
            core.key: core.initialized(shapes[core.key], generator, zeros=zeros)
            for core in self.cores
        }

    def transform_input(self, x: Tensor, state: State) -> Tensor:
        """What the base layer gets instead of ``x``."""
        return x

    def fused_forward(
        self, x: Tensor, base: BaseWeight, bias: Tensor | None, state: State
    ) -> Tensor | None:
        """The base layer and the adapter in one go; None where they are better computed apart."""
        return None

    def check_fits(self, out_features: int, in_features: int) -> None:
        """Raise ValueError if the layer has other widths."""
        if (self.out_features, self.in_features) != (out_features, in_features):
            raise ValueError(
                f"the network is {self.out_features} x {self.in_features}, the layer "
                f"{out_features} x {in_features}"
            )


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

    def fused_forward(
        self, x: Tensor, base: BaseWeight, bias: Tensor | None, state: State
    ) -> Tensor | None:
        """The base layer and the update in one go; None where they are better computed apart."""
        if self.dropout and state.training:
            return None
        if state.cached is not None:
            return state.cached.fused_forward(x, base, bias)
        n_tokens, training = x.shape[:-1].numel(), torch.is_grad_enabled()
        strategy = choose_strategy(self, base.kind, n_tokens, training=training)
        if strategy.name == "fused":
            fixed, anchor = state.fixed(base)
            return recomputed_linear(x, fixed, bias, self.bound(state.cores, anchor))
        if strategy.factors and isinstance(base, DenseWeight) and not self.anchored:
            matrices = self.matrices(strategy, state.cores)
            if matrices[0].dtype == x.dtype:
                return factored_linear(x, base.weight, bias, matrices)
        return None

    def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        return y + self._applied(x, state).to(y.dtype)

    def _applied(self, x: Tensor, state: State) -> Tensor:
        if state.cached is not None and state.cached.maps:
            return factored_linear(x, None, None, *state.cached.maps)
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


def computing(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which tensors are combined: theirs, but at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
