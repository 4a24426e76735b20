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

from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.networks.initializers import Start, normal, somewhere

Cores = Mapping[str, Tensor]
# Chains of matrices, one for each map of an adapter.
Maps = tuple[Sequence[Tensor], ...]


@dataclass(frozen=True)
class Core:
    """One core of a network.

    Attributes
    ----------
    name : str
        Its name, an identifier.
    legs : tuple of str
        Names of its legs, in the order of its axes.
    start : Start
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
    >>> core.key, str(core.start), core.frozen
    ('u_768x768', 'N(0, 0.02^2)', False)
    """

    name: str
    legs: tuple[str, ...]
    start: Start = normal()  # noqa: RUF009 (an immutable value)
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
    def folded(self) -> Maps | None:
        """What was computed of the values beforehand, where they are still the same."""


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

    # Whether it is an update of the weight, so that it has a dense form and merges.
    additive: ClassVar[bool] = False
    # Whether the value at the frozen initial cores is subtracted, and W minus it kept.
    anchored = False
    residual = False

    @property
    def n_params(self) -> int:
        """Trainable values: those of its cores, shared ones in full, without the anchor."""
        shapes = self.shapes
        return sum(math.prod(shapes[core.key]) for core in self.cores if not core.frozen)

    def initial(
        self, generator: torch.Generator | None = None, *, zeros: bool = True
    ) -> dict[str, Tensor]:
        """Draw initial cores, by key; without `zeros`, small values in the place of zeros."""
        shapes = self.shapes
        return {
            core.key: (core.start if zeros else somewhere(core.start, shapes[core.key])).draw(
                shapes[core.key], generator
            )
            for core in self.cores
        }

    def transform_input(self, x: Tensor, state: State) -> Tensor:
        """What the base layer gets instead of ``x``."""
        return x

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

    if TYPE_CHECKING:

        @property
        def dropout(self) -> float:
            """Probability with which the activations that enter the update are dropped."""

        def apply(self, x: Tensor, cores: Cores, anchor: Cores | None = None) -> Tensor:
            """The product of ``x`` with the update."""

    def transform_output(self, x: Tensor, y: Tensor, state: State) -> Tensor:
        """What the layer gives instead of the base layer's ``y`` on ``x``."""
        return y + self._applied(x, state).to(y.dtype)

    def _applied(self, x: Tensor, state: State) -> Tensor:
        if state.folded:
            return factored_linear(x, None, None, *state.folded)
        cores = {key: core.to(x.device) for key, core in state.cores.items()}
        x = functional.dropout(x, self.dropout, state.training)
        # Half precision would round away the difference of the two terms.
        if self.anchored and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.apply(x, cores, state.anchor)
        return self.apply(x, cores, state.anchor)


def computing(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which tensors are combined: theirs, but at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
