"""An adapter's update as a tensor network, declared as data.

A method names its cores and their legs; legs with the same name are contracted, the legs that are
left are the rows and columns of the update. Counting, building the dense update and applying it
to activations follow from the declaration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import opt_einsum
import torch
from torch import Tensor

from tnlib import Plan, PlansBySize, plan_by_size, plan_contraction

Cores = Mapping[str, Tensor]


@dataclass(frozen=True)
class Site:
    """A weight that is to be adapted: its name in the model and its shape."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Core:
    """One core: its name and the names of its legs, in the order of its axes."""

    name: str
    legs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A tensor network whose open legs are the rows and columns of a weight update.

    Attributes
    ----------
    cores : tuple of Core
        The cores; every name is used once.
    sizes : mapping of str to int
        Size of every leg.
    out_legs, in_legs : tuple of str
        Open legs, slowest first, whose sizes multiply to the output and input width.
    scale : float
        Factor of the update.
    anchored : bool
        Whether the network's value at its frozen initial cores is subtracted, so that the update
        starts at zero from any initial cores: N(theta) - N(theta_0).
    residual : bool
        Whether a layer also keeps W - N(theta_0), for an anchored network: one product less a
        step, one dense copy of the weight more.

    Raises
    ------
    ValueError
        If legs and sizes do not fit together.
    """

    cores: tuple[Core, ...]
    sizes: Mapping[str, int]
    out_legs: tuple[str, ...]
    in_legs: tuple[str, ...]
    scale: float = 1.0
    anchored: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        names = [core.name for core in self.cores]
        if len(set(names)) != len(names):
            raise ValueError(f"core names must be different, got {names}")
        if not all(name.isidentifier() for name in names):
            raise ValueError(f"core names must be identifiers, got {names}")
        legs = {leg for core in self.cores for leg in core.legs}
        unknown = sorted(legs - set(self.sizes))
        if unknown:
            raise ValueError(f"legs without a size: {unknown}; add them to sizes")
        open_legs = (*self.out_legs, *self.in_legs)
        loose = sorted(set(open_legs) - legs)
        if loose:
            raise ValueError(f"open legs that no core has: {loose}")
        counts = Counter(leg for core in self.cores for leg in core.legs)
        single = sorted(
            leg
            for leg, n in counts.items()
            if n == 1 and self.sizes[leg] > 1 and leg not in open_legs
        )
        if single:
            raise ValueError(f"legs of one core that are not open, so nothing joins them: {single}")
        if len(set(open_legs)) != len(open_legs):
            raise ValueError(f"a leg can be open once, got {open_legs}")
        if min(self.sizes.values(), default=1) < 1:
            raise ValueError(f"every leg's size must be at least 1, got {dict(self.sizes)}")
        if self.residual and not self.anchored:
            raise ValueError("residual=True needs an anchored network: W - N(theta_0)")

    @property
    def out_features(self) -> int:
        """Rows of the update."""
        return math.prod(self.sizes[leg] for leg in self.out_legs)

    @property
    def in_features(self) -> int:
        """Columns of the update."""
        return math.prod(self.sizes[leg] for leg in self.in_legs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by name."""
        return {core.name: tuple(self.sizes[leg] for leg in core.legs) for core in self.cores}

    @property
    def n_params(self) -> int:
        """Trainable values: those of the cores, without the anchor."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def delta(self, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """The dense update, of shape (out_features, in_features), in the dtype of the cores.

        Parameters
        ----------
        cores : mapping of str to Tensor
            Values by core name.
        anchor : mapping of str to Tensor, optional
            Initial values, required exactly when the network is anchored.
        """
        self._check_anchor(anchor)
        shape = (self.out_features, self.in_features)
        update: Tensor = self._dense_plan(*self._values(cores)).reshape(shape)
        if anchor is not None:
            update = update - self._dense_plan(*self._values(anchor)).reshape(shape)
        return update if self.scale == 1.0 else update * self.scale

    def apply(self, x: Tensor, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """``x @ delta.T`` in the order that needs fewest operations for so many rows.

        Up to :attr:`breakeven` rows the update is not formed.

        Parameters
        ----------
        x : Tensor, shape (..., in_features)
            In the dtype of the cores.
        cores, anchor : mapping of str to Tensor
            As for :meth:`delta`.

        Returns
        -------
        Tensor, shape (..., out_features)
        """
        self._check_anchor(anchor)
        batch = x.reshape(-1, *(self.sizes[leg] for leg in self.in_legs))
        plan = self._token_plans.at(batch.shape[0])
        y: Tensor = plan(batch, *self._values(cores))
        if anchor is not None:
            y = y - plan(batch, *self._values(anchor))
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.scale == 1.0 else y * self.scale

    @cached_property
    def unanchored(self) -> Network:
        """The same network without its anchor: N(theta) alone."""
        return replace(self, anchored=False, residual=False)

    @cached_property
    def breakeven(self) -> int:
        """Largest number of tokens that :meth:`apply` serves with fewer operations.

        Above it, forming the update once and multiplying by it is cheaper.
        """
        plans = self._token_plans
        if 0 not in plans.plans[-1].steps[-1].inputs:
            return 1 << 62
        return plans.breakeven[-1] - 1 if plans.breakeven else 0

    @cached_property
    def _dense_plan(self) -> Plan:
        shapes = self.shapes.values()
        return plan_contraction(self._equation(None), *shapes)

    @cached_property
    def _token_plans(self) -> PlansBySize:
        tokens: tuple[int | str, ...] = ("tokens", *(self.sizes[leg] for leg in self.in_legs))
        return plan_by_size(
            self._equation("tokens"), tokens, *self.shapes.values(), requires_grad=()
        )

    def _equation(self, batch: str | None) -> str:
        legs = list(self.sizes)
        symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate([*legs, "tokens"])}
        terms = [_spell(symbol, core.legs) for core in self.cores]
        if batch is None:
            return f"{','.join(terms)}->{_spell(symbol, self.out_legs + self.in_legs)}"
        vectors = _spell(symbol, (batch, *self.in_legs))
        return f"{vectors},{','.join(terms)}->{_spell(symbol, (batch, *self.out_legs))}"

    def _values(self, cores: Cores) -> list[Tensor]:
        return [cores[core.name] for core in self.cores]

    def _check_anchor(self, anchor: Cores | None) -> None:
        if self.anchored != (anchor is not None):
            needs = "needs" if self.anchored else "takes no"
            raise ValueError(f"this network {needs} anchor (anchored={self.anchored})")


def _spell(symbol: Mapping[str, str], legs: Sequence[str]) -> str:
    return "".join(symbol[leg] for leg in legs)


def mpo_network(
    rows: Sequence[int],
    columns: Sequence[int],
    ranks: Sequence[int],
    *,
    anchored: bool = False,
    residual: bool = False,
) -> Network:
    """A matrix product operator with cores ``core_0 ... core_{n-1}`` of shape (r, i, j, r)."""
    order = len(rows)
    cores = tuple(
        Core(f"core_{k}", (f"bond_{k}", f"out_{k}", f"in_{k}", f"bond_{k + 1}"))
        for k in range(order)
    )
    sizes = {f"bond_{k}": rank for k, rank in enumerate(ranks)}
    sizes |= {f"out_{k}": size for k, size in enumerate(rows)}
    sizes |= {f"in_{k}": size for k, size in enumerate(columns)}
    return Network(
        cores,
        sizes,
        out_legs=tuple(f"out_{k}" for k in range(order)),
        in_legs=tuple(f"in_{k}" for k in range(order)),
        anchored=anchored,
        residual=residual,
    )


def computing(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which tensors are combined: theirs, but at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
