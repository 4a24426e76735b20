"""An adapter's update as a tensor network, declared as data.

A method names its cores and their legs; legs with the same name are contracted, the legs that are
left are the rows and columns of the update. A core belongs to one weight or to a group of them;
one that holds the values of several layers has a leg for the layer, and the network of one weight
is fixed at an index of it. Counting, initial values, the dense update and its product with
activations follow from the declaration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import opt_einsum
import torch
from torch import Tensor

from tnlib import Plan, PlansBySize, plan_by_size, plan_contraction
from tnlib_adapters.core import Core, Cores, Declared

Order = tuple[tuple[tuple[int, ...], str], ...]
_ANY = 1 << 62


@dataclass(frozen=True, eq=False, repr=False)
class Network(Declared):
    """A tensor network whose open legs are the rows and columns of a weight update.

    Attributes
    ----------
    cores : tuple of Core
        The cores; every name is used once.
    sizes : mapping of str to int
        Size of every leg.
    out_legs, in_legs : tuple of str
        Open legs, slowest first, whose sizes multiply to the output and input width.
    at : mapping of str to int
        Legs at which the network is fixed, with the index: the layer of a core that holds all.
    scale : float
        Factor of the update.
    dropout : float
        Probability with which the activations that enter the update are dropped in training.
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
    at: Mapping[str, int] = field(default_factory=dict)
    scale: float = 1.0
    dropout: float = 0.0
    anchored: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        if not self.cores:
            raise ValueError("a network needs at least one core")
        for keys in ([core.name for core in self.cores], [core.key for core in self.cores]):
            if len(set(keys)) != len(keys):
                raise ValueError(f"core names must be different, got {keys}")
        if not (math.isfinite(self.scale) and 0 <= self.dropout < 1):
            raise ValueError(f"got scale={self.scale}, dropout={self.dropout}; dropout is below 1")
        legs = {leg for core in self.cores for leg in core.legs}
        unknown = sorted(legs - set(self.sizes))
        if unknown:
            raise ValueError(f"legs without a size: {unknown}; add them to sizes")
        if not all(isinstance(size, int) and size >= 1 for size in self.sizes.values()):
            raise ValueError(f"every leg's size must be an int, at least 1, got {dict(self.sizes)}")
        for leg, index in self.at.items():
            if not (leg in legs and 0 <= index < self.sizes[leg]):
                raise ValueError(f"cannot be fixed at {leg}={index}: sizes are {dict(self.sizes)}")
        open_legs = (*self.out_legs, *self.in_legs)
        if len(set(open_legs)) != len(open_legs):
            raise ValueError(f"a leg can be open once, got {open_legs}")
        both = sorted(set(open_legs) & set(self.at))
        if both:
            raise ValueError(f"legs cannot be open and fixed by at: {both}")
        loose = sorted(set(open_legs) - legs)
        if loose:
            raise ValueError(f"open legs that no core has: {loose}")
        joints = Counter(leg for core in self.cores for leg in self._legs(core))
        single = sorted(
            leg
            for leg, n in joints.items()
            if n == 1 and self.sizes[leg] > 1 and leg not in open_legs
        )
        if single:
            raise ValueError(f"legs of one core that are not open, so nothing joins them: {single}")
        if self.anchored and any(core.group or core.frozen for core in self.cores):
            raise ValueError("an anchored network has trainable cores of its own only")
        if self.residual and not self.anchored:
            raise ValueError("residual=True needs an anchored network: W - N(theta_0)")

    @cached_property
    def out_features(self) -> int:
        """Rows of the update."""
        return math.prod(self.sizes[leg] for leg in self.out_legs)

    @cached_property
    def in_features(self) -> int:
        """Columns of the update."""
        return math.prod(self.sizes[leg] for leg in self.in_legs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by its key, shared ones in full."""
        return {core.key: tuple(self.sizes[leg] for leg in core.legs) for core in self.cores}

    def delta(self, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """The dense update, of shape (out_features, in_features), in the dtype of the cores.

        Parameters
        ----------
        cores : mapping of str to Tensor
            Values by key.
        anchor : mapping of str to Tensor, optional
            Initial values, required exactly when the network is anchored.
        """
        self._check_anchor(anchor)
        update = self._dense(cores)
        if anchor is not None:
            update = update - self._dense(anchor)
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
        batch = x.reshape(-1, *self._in_sizes)
        y = self._contracted([batch, *self.values(cores)])
        if anchor is not None:
            y = y - self._contracted([batch, *self.values(anchor)])
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.scale == 1.0 else y * self.scale

    def values(self, cores: Cores) -> list[Tensor]:
        """The cores in order, those with a fixed leg at its index."""
        taken = []
        for core in self.cores:
            value = cores[core.key]
            for axis in reversed(range(len(core.legs))):
                if core.legs[axis] in self.at:
                    value = value.select(axis, self.at[core.legs[axis]])
            taken.append(value)
        return taken

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
            return _ANY
        return plans.breakeven[-1] - 1 if plans.breakeven else 0

    def __repr__(self) -> str:
        """One line a core, and the count."""
        lines = [f"Network {self.out_features} x {self.in_features}, {self.n_params:,} values"]
        for core in self.cores:
            legs = ", ".join(f"{leg} {self.sizes[leg]}" for leg in core.legs)
            kept = "frozen" if core.frozen else str(core.start)
            lines.append(f"  {core.name}({legs})  {core.group or 'this weight'}, {kept}")
        return "\n".join(lines)

    def _legs(self, core: Core) -> tuple[str, ...]:
        return tuple(leg for leg in core.legs if leg not in self.at)

    def _dense(self, cores: Cores) -> Tensor:
        values = self.values(cores)
        if torch.compiler.is_compiling():
            update = _stepwise(self._dense_order, values)
        else:
            update = self._dense_plan(*values)
        return update.reshape(self.out_features, self.in_features)

    def _contracted(self, operands: list[Tensor]) -> Tensor:
        """A batch of rows, the first operand, contracted with the cores."""
        tokens = operands[0].shape[0]
        if torch.compiler.is_compiling():
            order = next(order for limit, order in self._token_orders if tokens <= limit)
            return _stepwise(order, operands)
        result: Tensor = self._token_plans.at(tokens)(*operands)
        return result

    def planned(self) -> None:
        """Work out all orders now: a graph that is compiled cannot."""
        _ = self._dense_order, self._token_orders, self.breakeven
        _ = self.out_features, self.in_features

    @cached_property
    def _in_sizes(self) -> tuple[int, ...]:
        return tuple(self.sizes[leg] for leg in self.in_legs)

    @cached_property
    def _dense_order(self) -> Order:
        return _order(self._dense_plan)

    @cached_property
    def _token_orders(self) -> tuple[tuple[int, Order], ...]:
        """The order up to a number of tokens, the last one for any."""
        plans = self._token_plans
        limits = [*(first - 1 for first in plans.breakeven), _ANY]
        return tuple((n, _order(plan)) for n, plan in zip(limits, plans.plans, strict=True))

    @cached_property
    def _dense_plan(self) -> Plan:
        return plan_contraction(self.equation(), *self._fixed_shapes())

    @cached_property
    def _token_plans(self) -> PlansBySize:
        tokens: tuple[int | str, ...] = ("tokens", *self._in_sizes)
        shapes = self._fixed_shapes()
        return plan_by_size(self.equation(" tokens"), tokens, *shapes, requires_grad=())

    def _fixed_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(self.sizes[leg] for leg in self._legs(core)) for core in self.cores]

    def equation(self, batch: str | None = None) -> str:
        """The einsum equation of the dense update, or with `batch` of its product with rows."""
        names = [*self.sizes, batch or ""]
        symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate(names)}

        def spell(legs: Sequence[str]) -> str:
            return "".join(symbol[leg] for leg in legs)

        terms = ",".join(spell(self._legs(core)) for core in self.cores)
        if batch is None:
            return f"{terms}->{spell(self.out_legs + self.in_legs)}"
        return f"{spell((batch, *self.in_legs))},{terms}->{spell((batch, *self.out_legs))}"

    def _check_anchor(self, anchor: Cores | None) -> None:
        if self.anchored != (anchor is not None):
            needs = "needs" if self.anchored else "takes no"
            raise ValueError(f"this network {needs} anchor (anchored={self.anchored})")


def _order(plan: Plan) -> Order:
    return tuple((step.inputs, step.equation) for step in plan.steps)


def _stepwise(order: Order, operands: list[Tensor]) -> Tensor:
    """A plan's steps without its caches, which a compiled graph cannot hold."""
    values = list(operands)
    for inputs, equation in order:
        values.append(torch.einsum(equation, *[values[k] for k in inputs]))
    return values[-1]
