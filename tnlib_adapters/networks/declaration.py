"""What every declaration of cores can say, and how it is applied with the values of an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
from torch import Tensor

from tnlib_adapters.execution.base_weight import BaseWeight
from tnlib_adapters.networks.core import Core, Cores, Maps


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
    def cached_update(self) -> Precomputed | None:
        """What was computed of the values beforehand, where they are still the same."""

    def base_and_anchor(self, base: BaseWeight) -> tuple[BaseWeight, Cores | None]:
        """A weight that stays while the values train, and the initial values to subtract."""


class Precomputed(Protocol):
    """What is computed once for many calls."""

    @property
    def maps(self) -> Maps:
        """Chains of matrices, one for each map; empty where they are part of a weight."""

    def forward_with_base(self, x: Tensor, base: BaseWeight, bias: Tensor | None) -> Tensor | None:
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

        def rescaled(self, multipliers: Mapping[str, float]) -> Self:
            """The same function of cores that were divided by multipliers, by key."""

    # Whether it is an update of the weight, so that it has a dense form and merges.
    additive: ClassVar[bool] = False
    # Factor of what it adds; of a fused projection that of its parts.
    scale = 1.0
    # Of networks one after another: how much smaller the change of the weight that they stand for
    # is than their product.
    gain_in_series: float | None = None
    # Whether that depends on the weight, so that `beside` is to be told of it.
    in_series_with_weight: ClassVar[bool] = False
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

    def beside(self, weight: Tensor) -> Self:
        """The declaration for a layer of this weight, (out_features, in_features)."""
        return self

    def bias_gains(self) -> dict[str, float]:
        """How far the layer's output moves when biases move by one, by key, where that scales."""
        return {}

    def transform_input(self, x: Tensor, state: State) -> Tensor:
        """What the base layer gets instead of ``x``."""
        return x

    def forward_with_base(
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
