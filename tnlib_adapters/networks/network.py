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
from torch.utils.checkpoint import checkpoint

from tnlib.common.deprecation import renamed_fields
from tnlib_adapters.execution.cost_model import Strategy, Subject
from tnlib_adapters.execution.dense_forms import Full, TwoFactor
from tnlib_adapters.execution.dense_update import DenseUpdate, dense_form
from tnlib_adapters.execution.factored_linear import factored_linear
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.execution.strategies import Strategies, choose_strategy, strategies_of
from tnlib_adapters.networks.core import Core, Cores, Factors
from tnlib_adapters.networks.low_rank import cut_factors
from tnlib_adapters.networks.weight_update import WeightUpdate


@renamed_fields(at="fixed_indices")
@dataclass(frozen=True, eq=False, repr=False)
class Network(WeightUpdate):
    """A tensor network whose open legs are the rows and columns of a weight update.

    Attributes
    ----------
    cores : tuple of Core
        The cores; every name is used once.
    sizes : mapping of str to int
        Size of every leg.
    out_legs, in_legs : tuple of str
        Open legs, slowest first, whose sizes multiply to the output and input width.
    fixed_indices : mapping of str to int
        Legs at which the network is fixed, with the index: the layer of a core that holds all.
    scale : float
        Factor of the update.
    dropout : float
        Probability with which the activations that enter the update are dropped in training.
    anchored : bool
        Whether the network's value at its frozen initial cores is subtracted, so that the update
        starts at zero from any initial cores: N(theta) - N(theta_0).
    residual : bool
        Whether a layer also keeps W - N(theta_0), for an anchored network: one product less per
        step, one dense copy of the weight more.

    Raises
    ------
    ValueError
        If legs and sizes do not fit together.

    Examples
    --------
    >>> from tnlib_adapters import Core, normal, zeros
    >>> lora = Network(
    ...     cores=(Core("A", ("r", "in"), normal(0.02)), Core("B", ("out", "r"), zeros)),
    ...     sizes={"in": 64, "out": 48, "r": 4},
    ...     out_legs=("out",),
    ...     in_legs=("in",),
    ... )
    >>> print(lora)
    Network 48 x 64, 448 parameters
      A(r 4, in 64)  this weight, N(0, 0.02^2)
      B(out 48, r 4)  this weight, zeros
    """

    cores: tuple[Core, ...]
    sizes: Mapping[str, int]
    out_legs: tuple[str, ...]
    in_legs: tuple[str, ...]
    fixed_indices: Mapping[str, int] = field(default_factory=dict)
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
        for leg, index in self.fixed_indices.items():
            if not (leg in legs and 0 <= index < self.sizes[leg]):
                raise ValueError(f"cannot be fixed at {leg}={index}: sizes are {dict(self.sizes)}")
        open_legs = (*self.out_legs, *self.in_legs)
        if len(set(open_legs)) != len(open_legs):
            raise ValueError(f"a leg can be open once, got {open_legs}")
        both = sorted(set(open_legs) & set(self.fixed_indices))
        if both:
            raise ValueError(f"legs cannot be open and have a fixed index: {both}")
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
    def networks(self) -> tuple[tuple[str, Network], ...]:
        """The networks that are contracted, with what tells them apart."""
        return (("", self),)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by its key, shared ones in full.

        Examples
        --------
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> LoTRConfig(r=4).network(Site("query", 48, 64)).shapes
        {'u_48x64': (48, 4), 'g': (4, 4), 'v_48x64': (64, 4)}
        """
        return {core.key: tuple(self.sizes[leg] for leg in core.legs) for core in self.cores}

    def bound(self, cores: Cores, anchor: Cores | None) -> DenseUpdate:
        """The dense update of given cores, minus that of the anchor if there is one."""
        fixed = () if anchor is None else tuple(self.values(anchor))
        return DenseUpdate(self.dense, tuple(self.values(cores)), fixed, self.scale)

    def cut_factors(self, cores: Cores, anchor: Cores | None = None) -> Factors | None:
        """B and A with ``B @ A`` the update, of any rank; None where no cut gives such."""
        return cut_factors(self, cores, anchor)

    def apply(self, x: Tensor, cores: Cores, anchor: Cores | None = None) -> Tensor:
        """``x @ delta.T`` by the strategy that is predicted to be fastest.

        Parameters
        ----------
        x : Tensor, shape (..., in_features)
            Activations of any dtype.
        cores, anchor : mapping of str to Tensor
            As for :meth:`delta`.

        Returns
        -------
        Tensor, shape (..., out_features)
            In the dtype of the cores, autocast's, or that of `x` where the update is formed.

        Examples
        --------
        >>> import torch
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> network = LoTRConfig(r=4).network(Site("query", 48, 64))
        >>> cores = {key: core.double() for key, core in network.initial(zeros=False).items()}
        >>> x = torch.randn(2, 64).double()
        >>> torch.allclose(network.apply(x, cores), x @ network.delta(cores).T)
        True
        """
        self.check_anchor(anchor)
        n_tokens, training = x.shape[:-1].numel(), torch.is_grad_enabled()
        strategy = choose_strategy(self, "none", n_tokens, training=training)
        if strategy.name == "dense":
            return recomputed_linear(x, None, None, self.bound(cores, anchor))
        y = self.follow(strategy, x, cores)
        return y if anchor is None else y - self.follow(strategy, x, anchor)

    def follow(self, strategy: Strategy, x: Tensor, cores: Cores) -> Tensor:
        """``x`` through the cores by a strategy that does not form the update."""
        if strategy.factors:
            return factored_linear(x, None, None, self.matrices(strategy, cores))
        if strategy.steps is None:
            raise ValueError(f"the strategy {strategy.name!r} forms the update; use delta")
        steps, values = strategy.steps, self.values(cores)

        def through(batch: Tensor, *cores: Tensor) -> Tensor:
            return steps([batch, *cores])

        batch = x.to(values[0].dtype).reshape(-1, *self._in_sizes)
        if strategy.checkpointed and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            y: Tensor = checkpoint(
                through, batch, *values, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y = through(batch, *values)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.scale == 1.0 else y * self.scale

    def matrices(self, strategy: Strategy, cores: Cores) -> list[Tensor]:
        """The factors of a strategy, of which the smallest is scaled; differentiable."""
        values = self.values(cores)
        made = [
            factor.contraction([values[k] for k in factor.cores]).reshape(factor.shape)
            for factor in strategy.factors
        ]
        if self.scale != 1.0:
            made[strategy.scaled] = made[strategy.scaled] * self.scale
        return made

    def values(self, cores: Cores) -> list[Tensor]:
        """The cores in order, those with a fixed leg at its index."""
        taken = []
        for core in self.cores:
            value = cores[core.key]
            for axis in reversed(range(len(core.legs))):
                if core.legs[axis] in self.fixed_indices:
                    value = value.select(axis, self.fixed_indices[core.legs[axis]])
            taken.append(value)
        return taken

    @cached_property
    def unanchored(self) -> Network:
        """The same network without its anchor: N(theta) alone."""
        return replace(self, anchored=False, residual=False)

    def rescaled(self, multipliers: Mapping[str, float]) -> Network:
        """The same function of cores that were divided by multipliers, by key.

        Examples
        --------
        >>> from tnlib_adapters import LoTRConfig, Site
        >>> network = LoTRConfig(r=4).network(Site("query", 48, 64))
        >>> network.scale, network.rescaled({"u_48x64": 0.25, "g": 64.0}).scale
        (0.25, 4.0)
        """
        found = (multipliers.get(core.key, 1.0) for core in self.cores)
        return replace(self, scale=self.scale * math.prod(found))

    def scaled(self, factor: float) -> Network:
        """The network with its update multiplied by a number."""
        return replace(self, scale=self.scale * factor)

    @cached_property
    def dense(self) -> Full | TwoFactor:
        """How the dense update is formed."""
        terms, rows, columns, sizes = self._spelled
        return dense_form(terms, rows, columns, sizes)

    @cached_property
    def strategies(self) -> tuple[Strategies, ...]:
        """The strategies to apply the update, and which is the fastest for a number of tokens."""
        trained = tuple(k for k, core in enumerate(self.cores) if not core.frozen)
        subject = Subject(
            self._token_equation(),
            self._in_sizes,
            tuple(self._fixed_shapes()),
            trained,
            self.anchored,
            self.dense,
            (self.out_features, self.in_features),
        )
        return (strategies_of(subject),)

    def __repr__(self) -> str:
        """One line per core, and the count."""
        lines = [f"Network {self.out_features} x {self.in_features}, {self.n_params:,} parameters"]
        for core in self.cores:
            legs = ", ".join(f"{leg} {self.sizes[leg]}" for leg in core.legs)
            kept = "frozen" if core.frozen else str(core.initializer)
            lines.append(f"  {core.name}({legs})  {core.group or 'this weight'}, {kept}")
        return "\n".join(lines)

    def _legs(self, core: Core) -> tuple[str, ...]:
        return tuple(leg for leg in core.legs if leg not in self.fixed_indices)

    def plan_strategies(self) -> None:
        """Work out all strategies now: a graph that is compiled cannot."""
        _ = self.strategies[0].table
        _ = self.out_features, self.in_features, self._in_sizes

    @cached_property
    def _in_sizes(self) -> tuple[int, ...]:
        return tuple(self.sizes[leg] for leg in self.in_legs)

    def _fixed_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(self.sizes[leg] for leg in self._legs(core)) for core in self.cores]

    @cached_property
    def _spelled(self) -> tuple[tuple[str, ...], str, str, tuple[tuple[str, int], ...]]:
        """Indices of the cores, rows and columns, and the size of every index."""
        symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate(self.sizes)}

        def spell(legs: Sequence[str]) -> str:
            return "".join(symbol[leg] for leg in legs)

        terms = tuple(spell(self._legs(core)) for core in self.cores)
        sizes = tuple((symbol[leg], size) for leg, size in self.sizes.items())
        return terms, spell(self.out_legs), spell(self.in_legs), sizes

    def _token_equation(self) -> str:
        """The einsum equation of rows of activations with all cores."""
        terms, rows, columns, sizes = self._spelled
        token = opt_einsum.get_symbol(len(sizes))
        return f"{token}{columns},{','.join(terms)}->{token}{rows}"
