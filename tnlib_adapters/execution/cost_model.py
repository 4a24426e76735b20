"""A strategy to apply an update, and its cost: seconds of a call that a roofline model predicts.

In training they are those of the forward and the backward pass, with what must be formed again
there, and with the price of writing the activations that are saved for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tnlib import Plan, Roofline, plan_contraction
from tnlib_adapters.execution.dense_forms import Full, TwoFactor
from tnlib_adapters.execution.planned_einsum import PlannedEinsum

# Measured with tnlib.measure_roofline on two cores of a server processor, in float32. Where the
# fastest strategy changes depends on their ratios only, and weakly.
NOMINAL = Roofline(
    library="torch",
    device="cpu",
    dtype="float32",
    itemsize=4,
    flops_per_second=1.4e11,
    read_bytes_per_second=1.1e10,
    write_bytes_per_second=2.4e10,
    fresh_bytes_per_second=2e9,
    move_bytes_per_second=3.2e9,
    seconds_per_step=1e-5,
    seconds_per_batch=9e-8,
)


@dataclass(frozen=True)
class Cost:
    """What a strategy costs for a number of tokens.

    Attributes
    ----------
    seconds : float
        Predicted at the nominal rates, with the price of what is saved.
    flops, backward_flops : int
        Operations of the forward and the backward pass; what is formed again counts as the
        latter.
    saved_bytes : int
        Intermediate arrays that are saved for the backward pass; activations, cores and the base
        weight do not count.
    """

    seconds: float
    flops: int
    backward_flops: int
    saved_bytes: int


@dataclass(frozen=True)
class Factor:
    """A matrix made of some cores: their numbers, how to contract them, and its shape."""

    cores: tuple[int, ...]
    contraction: PlannedEinsum
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Strategy:
    """One strategy to apply an update.

    Attributes
    ----------
    name : str
        "activations", "factors", "dense" or "fused"; "parts" where each part has its own.
    steps : PlannedEinsum or None
        The contraction of the activations, the first operand, with the cores.
    factors : tuple of Factor
        The matrices of a chain that consists of matrix products.
    checkpointed : bool
        Whether the backward pass computes the intermediate arrays again instead of saving them.
    scaled : int
        Number of the smallest factor, which takes the factor of the update.
    """

    name: str
    steps: PlannedEinsum | None = None
    factors: tuple[Factor, ...] = ()
    checkpointed: bool = False
    scaled: int = 0


@dataclass(frozen=True)
class Subject:
    """The network whose strategies are compared, as far as costs depend on it."""

    equation: str
    in_sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    trained: tuple[int, ...]
    anchored: bool
    dense: Full | TwoFactor
    features: tuple[int, int]

    def arrays(self, tokens: int) -> list[tuple[int, ...]]:
        """Shapes of the activations and of the cores."""
        return [(tokens, *self.in_sizes), *self.shapes]

    def wants(self, training: bool) -> tuple[int, ...]:
        """Operands that require a gradient."""
        return (0, *(1 + k for k in self.trained)) if training else ()


def cost(subject: Subject, strategy: Strategy, tokens: int, *, training: bool) -> Cost:
    """What a strategy costs for a number of tokens."""
    if strategy.steps is None:
        return _dense_cost(subject, tokens, training, fused=strategy.name == "fused")
    return _chain_cost(subject, strategy, strategy.steps.plan, tokens, training)


def _chain_cost(
    subject: Subject, strategy: Strategy, plan: Plan, tokens: int, training: bool
) -> Cost:
    shapes = subject.arrays(tokens)
    # A network's own cores, and the frozen ones that an anchored one subtracts.
    runs = [subject.wants(training)] + [subject.wants(training)[:1]] * subject.anchored
    own = [plan.resized(*shapes, requires_grad=wants) for wants in runs]
    seconds = sum(one.predicted(NOMINAL) for one in own)
    flops, backward = sum(one.flops for one in own), sum(one.backward_flops for one in own)
    saved = 0
    if training and strategy.factors:
        saved = tokens * sum(factor.shape[1] for factor in strategy.factors[:-1]) * NOMINAL.itemsize
    elif training and strategy.checkpointed:
        seconds += len(own) * plan.predicted(NOMINAL, *shapes, requires_grad=())
        backward += flops
    elif training:
        saved = sum(one.saved_bytes for one in own)
    if not strategy.factors:
        # Its result is added in a pass of its own.
        seconds += _seconds("to,to->to", (tokens, subject.features[0]))
    return Cost(seconds + saved / NOMINAL.fresh_bytes_per_second, flops, backward, saved)


def _dense_cost(subject: Subject, tokens: int, training: bool, *, fused: bool) -> Cost:
    entries = subject.features
    forming, flops = _forming(subject.dense)
    gradients = 2 * forming if training else 0.0
    times = 2 if subject.anchored else 1
    built = times * forming + _seconds("oi,oi->oi", entries)
    product = _product(tokens, *entries)
    seconds, total = built, times * flops
    backward = 0
    if not fused:
        seconds += product[0] + _seconds("to,to->to", (tokens, entries[0]))
        total += product[1]
    if training:
        products = 1 if fused else 2
        seconds += built + gradients + products * product[0]
        backward = times * flops + 2 * flops + products * product[1]
    return Cost(seconds, total, backward, 0)


@lru_cache(maxsize=4096)
def _forming(dense: Full | TwoFactor) -> tuple[float, int]:
    """Seconds and operations of forming a dense update."""
    if not isinstance(dense, TwoFactor):
        plan = dense.contraction.plan
        return plan.predicted(NOMINAL, requires_grad=()), plan.flops
    rows = dense.rows[0] * dense.columns[0]
    columns = dense.rows[1] * dense.columns[1]
    last = plan_contraction("ab,bc->ac", (rows, dense.summed), (dense.summed, columns))
    plans = [dense.left.plan, dense.right.plan, last]
    seconds = sum(plan.predicted(NOMINAL, requires_grad=()) for plan in plans)
    return seconds, sum(plan.flops for plan in plans)


@lru_cache(maxsize=4096)
def _product(tokens: int, out: int, width: int) -> tuple[float, int]:
    plan = plan_contraction("ti,oi->to", (tokens, width), (out, width), requires_grad=())
    return plan.predicted(NOMINAL), plan.flops


@lru_cache(maxsize=4096)
def _seconds(equation: str, shape: Sequence[int]) -> float:
    """Of an elementwise pass."""
    return plan_contraction(equation, shape, shape, requires_grad=()).predicted(NOMINAL)
