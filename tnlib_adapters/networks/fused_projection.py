"""Updates one below another: the roles of a fused projection.

A layer that computes queries, keys and values at once has one weight whose rows belong to three
roles. Each role keeps its own network. Architectures lay the rows out in two ways: role after
role, or for every group of heads its queries, its keys and its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from tnlib_adapters.execution.cost_model import Strategy
from tnlib_adapters.execution.dense_forms import Rows, interleaved
from tnlib_adapters.execution.dense_update import DenseUpdate
from tnlib_adapters.execution.strategies import Strategies
from tnlib_adapters.networks.core import Core, Cores, Factors
from tnlib_adapters.networks.low_rank import stacked_factors
from tnlib_adapters.networks.network import Network
from tnlib_adapters.networks.weight_update import WeightUpdate


@dataclass(frozen=True, eq=False, repr=False)
class FusedProjection(WeightUpdate):
    """Networks whose updates are the rows of one weight.

    Attributes
    ----------
    parts : tuple of Network
        One network per role, over the same columns. Cores of one key are one tensor.
    groups : int
        1 for part after part; otherwise the rows of every part are cut into so many equal runs,
        and the runs of all parts take turns.

    Raises
    ------
    ValueError
        If the parts have different columns, do not fit `groups`, or share a key by mistake.

    Examples
    --------
    >>> from tnlib_adapters import Core, Network, zeros
    >>> def lora(role):
    ...     cores = Core(f"A_{role}", ("r", "in")), Core(f"B_{role}", ("out", "r"), zeros)
    ...     return Network(cores, {"in": 64, "out": 48, "r": 4}, ("out",), ("in",))
    >>> qkv = FusedProjection((lora("q"), lora("k"), lora("v")))
    >>> qkv.out_features, qkv.delta(qkv.initial()).shape
    (144, torch.Size([144, 64]))
    """

    parts: tuple[Network, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        if len({part.in_features for part in self.parts}) != 1:
            raise ValueError(f"parts need one input width, got {self.parts}")
        if any(part.anchored or part.dropout != self.parts[0].dropout for part in self.parts):
            raise ValueError("the parts of a projection are not anchored and have one dropout")
        if any(part.out_features % self.groups for part in self.parts):
            rows = [part.out_features for part in self.parts]
            raise ValueError(f"rows {rows} cannot be cut into {self.groups} groups")
        seen: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            for core in part.cores:
                shape = part.shapes[core.key]
                if core.key in seen and (core.group is None or seen[core.key] != shape):
                    raise ValueError(
                        f"two parts have a core {core.key!r}, of shapes {seen[core.key]} and "
                        f"{shape}; cores without a group need names of their own"
                    )
                seen[core.key] = shape

    @cached_property
    def cores(self) -> tuple[Core, ...]:
        """All cores, those that several parts use once."""
        return tuple({core.key: core for part in self.parts for core in part.cores}.values())

    @cached_property
    def out_features(self) -> int:
        """Rows of the update."""
        return sum(part.out_features for part in self.parts)

    @property
    def in_features(self) -> int:
        """Columns of the update."""
        return self.parts[0].in_features

    @property
    def dropout(self) -> float:
        """As for a network."""
        return self.parts[0].dropout

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by key."""
        return {key: shape for part in self.parts for key, shape in part.shapes.items()}

    @property
    def networks(self) -> tuple[tuple[str, Network], ...]:
        """The networks that are contracted, with what tells them apart."""
        return tuple((f", part {k}", part) for k, part in enumerate(self.parts))

    def rescaled(self, multipliers: Mapping[str, float]) -> FusedProjection:
        """The same function of cores that were divided by multipliers, by key."""
        return replace(self, parts=tuple(part.rescaled(multipliers) for part in self.parts))

    def scaled(self, factor: float) -> FusedProjection:
        """The declaration with its update multiplied by a number."""
        return replace(self, parts=tuple(part.scaled(factor) for part in self.parts))

    def plan_strategies(self) -> None:
        """Work out all strategies now."""
        for part in self.parts:
            part.plan_strategies()
        _ = self.strategies, self.dense

    @cached_property
    def strategies(self) -> tuple[Strategies, ...]:
        """The strategies of every part."""
        return tuple(part.strategies[0] for part in self.parts)

    @cached_property
    def dense(self) -> Rows:
        """How the parts' updates become the rows of one."""
        forms = tuple((part.dense, len(part.cores), part.scale) for part in self.parts)
        return Rows(forms, self.groups)

    def bound(self, cores: Cores, anchor: Cores | None) -> DenseUpdate:
        """The dense update of given cores; there is no anchor."""
        values = tuple(value for part in self.parts for value in part.values(cores))
        return DenseUpdate(self.dense, values)

    def matrices(self, strategy: Strategy, cores: Cores) -> list[Tensor]:
        """The factors of a strategy, which only a single part can have for all rows."""
        (part,) = self.parts
        return part.matrices(strategy, cores)

    def cut_factors(self, cores: Cores, anchor: Cores | None = None) -> Factors | None:
        """B and A with ``B @ A`` the update, of any rank; None where a part has none."""
        parts = [part.cut_factors(cores) for part in self.parts]
        found = [part for part in parts if part is not None]
        return stacked_factors(found, self.groups) if len(found) == len(parts) else None

    def apply(self, x: Tensor, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """``x @ delta.T`` for ``x`` of shape (..., in_features)."""
        return interleaved([part.apply(x, cores, anchor) for part in self.parts], self.groups)

    def __repr__(self) -> str:
        """Every part in turn."""
        return "\n".join(map(str, self.parts))
