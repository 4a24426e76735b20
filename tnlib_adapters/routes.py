"""The ways to apply an update to a number of tokens, and which is predicted to be the fastest.

A planned contraction of activations with cores passes the activations through a chain of products
with arrays that are made of cores alone. If every link of the chain is a matrix product, its
matrices are the *factors*: the update is applied as LoRA is. Otherwise the steps are run as they
are, through the *activations*. The *dense* update may also be formed and multiplied, or *fused*:
added to the base weight, so that one product serves both. What is compared are the seconds that a
roofline model predicts for a call, in training with its backward pass, with what must be formed
again there, and with writing what is kept for it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial

from tnlib import Plan, Roofline, plan_contraction
from tnlib_adapters.dense import Dense, Halves
from tnlib_adapters.ordered import Ordered, planned

# Measured with tnlib.measure_roofline on two cores of a server processor, in float32. Where the
# fastest way changes depends on their ratios only, and weakly.
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
# Numbers of tokens for which orders are planned, and between which the ways change.
_PLANNED = (1, 32, 1024)
_SIZES = tuple(4**k for k in range(9))


@dataclass(frozen=True)
class Cost:
    """What a way costs for a number of tokens.

    Attributes
    ----------
    seconds : float
        Predicted at the nominal rates, with the price of what is kept.
    flops, backward_flops : int
        Operations of the forward and the backward pass; what is formed again counts to the latter.
    kept_bytes : int
        Intermediate arrays that stay for the backward pass, of which activations, cores and the
        base weight are no part.
    """

    seconds: float
    flops: int
    backward_flops: int
    kept_bytes: int


@dataclass(frozen=True)
class Factor:
    """A matrix made of some cores: their numbers, how to contract them, and its shape."""

    cores: tuple[int, ...]
    contraction: Ordered
    shape: tuple[int, int]


@dataclass(frozen=True)
class Route:
    """One way to apply an update.

    Attributes
    ----------
    name : str
        "activations", "factors", "dense" or "fused".
    steps : Ordered or None
        The contraction of the activations, the first operand, with the cores.
    factors : tuple of Factor
        The matrices of a chain that consists of matrix products.
    rebuilt : bool
        Whether the backward pass computes the intermediate arrays again instead of keeping them.
    scaled : int
        Number of the smallest factor, which takes the factor of the update.
    """

    name: str
    steps: Ordered | None = None
    factors: tuple[Factor, ...] = ()
    rebuilt: bool = False
    scaled: int = 0


@dataclass(frozen=True)
class Subject:
    """The network whose ways are compared, as far as costs depend on it."""

    equation: str
    in_sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    trained: tuple[int, ...]
    anchored: bool
    dense: Dense
    features: tuple[int, int]

    def arrays(self, tokens: int) -> list[tuple[int, ...]]:
        """Shapes of the activations and of the cores."""
        return [(tokens, *self.in_sizes), *self.shapes]

    def wants(self, training: bool) -> tuple[int, ...]:
        """Operands that require a gradient."""
        return (0, *(1 + k for k in self.trained)) if training else ()


@dataclass(frozen=True)
class Routes:
    """All ways of one network, and the best one for a number of tokens."""

    subject: Subject
    ways: tuple[Route, ...]

    def at(self, tokens: int, *, training: bool, fusible: bool) -> Route:
        """The best way.

        Parameters
        ----------
        tokens : int
            Rows of the activations.
        training : bool
            Whether gradients are recorded.
        fusible : bool
            Whether the update may be added to the base weight.
        """
        starts, ways = self.table[training, fusible]
        place = 0
        for start in starts[1:]:
            # Plain comparisons, which a compiled graph can hold as guards.
            if tokens < start:
                break
            place += 1
        return ways[place]

    def over_packed(self, tokens: int, *, training: bool) -> Route:
        """The way over a base weight that has to be made dense for every call.

        In training the update is added there instead of a way that would keep more for the
        backward pass than the activations that come in: that keeps nothing, and costs one product
        more than the base alone.
        """
        way = self.at(tokens, training=training, fusible=True)
        if training and any(way is keeping for keeping in self.keeping):
            return self.ways[-1]
        return way

    @cached_property
    def keeping(self) -> tuple[Route, ...]:
        """The ways that keep more for the backward pass than the activations that come in."""
        tokens = 256
        size = 4 * tokens * math.prod(self.subject.in_sizes)
        return tuple(
            way for way in self.ways if self.cost(way, tokens, training=True).kept_bytes > size
        )

    def usable(self, *, training: bool, fusible: bool) -> list[int]:
        """Numbers of the ways that there are to choose from."""
        return [
            k
            for k, way in enumerate(self.ways)
            if (fusible or way.name != "fused") and (training or not way.rebuilt)
        ]

    def cost(self, route: Route, tokens: int, *, training: bool) -> Cost:
        """What a way costs."""
        if route.steps is None:
            return _dense_cost(self.subject, tokens, training, fused=route.name == "fused")
        return _chain_cost(self.subject, route, tokens, training)

    @cached_property
    def table(self) -> Mapping[tuple[bool, bool], tuple[tuple[int, ...], tuple[Route, ...]]]:
        """By (training, fusible): numbers of tokens from which ways are the best, and the ways."""
        found = {}
        for training in (False, True):
            seconds = cache(partial(self._seconds, training))
            for fusible in (False, True):
                usable = self.usable(training=training, fusible=fusible)
                found[training, fusible] = self._starts(usable, seconds)
        return found

    def _seconds(self, training: bool, way: int, tokens: int) -> float:
        return self.cost(self.ways[way], tokens, training=training).seconds

    def _starts(
        self, usable: Sequence[int], seconds: Callable[[int, int], float]
    ) -> tuple[tuple[int, ...], tuple[Route, ...]]:
        best = [min(usable, key=lambda way: seconds(way, size)) for size in _SIZES]
        starts, ways = [0], best[:1]
        for k, way in enumerate(best):
            last = ways[-1]
            if way != last:
                between = range(_SIZES[k - 1], _SIZES[k] + 1)
                first = bisect.bisect_left(
                    between, True, key=lambda n: seconds(way, n) < seconds(last, n)
                )
                starts.append(between[first])
                ways.append(way)
        return tuple(starts), tuple(self.ways[k] for k in ways)


@lru_cache(maxsize=4096)
def routes(subject: Subject) -> Routes:
    """Find the ways of a network; equal networks of a model share them."""
    wants = subject.wants(True)
    made = [
        plan_contraction(subject.equation, *subject.arrays(tokens), requires_grad=wants)
        for tokens in _PLANNED
    ]
    plans = {plan.path: plan for plan in made}.values()
    ways: list[Route] = []
    for plan in plans:
        factors = chain(plan)
        steps = Ordered.of(plan)
        if len(factors) > 1:
            entries = [math.prod(factor.shape) for factor in factors]
            ways.append(Route("factors", steps, factors, scaled=entries.index(min(entries))))
        elif not factors:
            ways += [Route("activations", steps), Route("activations", steps, rebuilt=True)]
    return Routes(subject, (*ways, Route("dense"), Route("fused")))


def chain(plan: Plan) -> tuple[Factor, ...]:
    """The matrices through which activations, operand 0 of `plan`, pass; empty if some are none."""
    terms, count = list(plan.network.terms), len(plan.network.terms)
    below = [{k} for k in range(count)]
    sizes, token = plan.network.sizes, terms[0][0]

    def legs_of(term: str) -> str:
        """The indices that more than one value has, without that of the rows."""
        return "".join(index for index in term if sizes[index] > 1 and index != token)

    number, legs, factors = 0, legs_of(terms[0]), []
    for step in plan.steps:
        below.append(set().union(*(below[n] for n in step.inputs)))
        if number not in step.inputs:
            continue
        place = 1 - step.inputs.index(number)
        if len(step.inputs) == 1 or any(leg in step.result for leg in legs):
            return ()
        other = step.terms[place]
        last = len(below) == count + len(plan.steps)
        kept = legs_of(plan.network.output if last else step.result)
        if not set(legs) <= set(other) or not set(kept) <= set(other):
            return ()
        cores = tuple(sorted(below[step.inputs[place]]))
        equation = f"{','.join(terms[n] for n in cores)}->{legs}{kept}"
        made = planned(equation, *(plan.shapes[n] for n in cores))
        shape = math.prod(sizes[i] for i in legs), math.prod(sizes[i] for i in kept)
        factors.append(Factor(tuple(n - 1 for n in cores), made, shape))
        number, legs = len(below) - 1, kept
    return tuple(factors)


def _chain_cost(subject: Subject, route: Route, tokens: int, training: bool) -> Cost:
    assert route.steps is not None
    plan, shapes = route.steps.plan, subject.arrays(tokens)
    # A network's own cores, and the frozen ones that an anchored one subtracts.
    runs = [subject.wants(training)] + [subject.wants(training)[:1]] * subject.anchored
    own = [plan.resized(*shapes, requires_grad=wants) for wants in runs]
    seconds = sum(one.predicted(NOMINAL) for one in own)
    flops, backward = sum(one.flops for one in own), sum(one.backward_flops for one in own)
    kept = 0
    if training and route.factors:
        kept = tokens * sum(factor.shape[1] for factor in route.factors[:-1]) * NOMINAL.itemsize
    elif training and route.rebuilt:
        seconds += len(own) * plan.predicted(NOMINAL, *shapes, requires_grad=())
        backward += flops
    elif training:
        kept = sum(one.saved_bytes for one in own)
    if not route.factors:
        # Its result is added in a pass of its own.
        seconds += _seconds("to,to->to", (tokens, subject.features[0]))
    return Cost(seconds + kept / NOMINAL.fresh_bytes_per_second, flops, backward, kept)


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
def _forming(dense: Dense) -> tuple[float, int]:
    """Seconds and operations of forming a dense update."""
    if not isinstance(dense, Halves):
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
