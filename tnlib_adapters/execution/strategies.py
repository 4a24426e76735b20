"""The ways to apply an update to a number of tokens, and which is predicted to be the fastest.

A planned contraction of activations with cores passes the activations through a chain of products
with arrays that are made of cores alone. If every link of the chain is a matrix product, its
matrices are the *factors*: the update is applied as LoRA is. Otherwise the steps are run as they
are, through the *activations*. The *dense* update may also be formed and multiplied, or *fused*:
added to the base weight, so that one product serves both.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial

from tnlib import Plan, plan_contraction
from tnlib_adapters.execution.cost_model import Cost, Factor, Route, Subject, cost
from tnlib_adapters.execution.planned_einsum import Ordered, planned

# Numbers of tokens for which orders are planned, and between which the ways change.
_PLANNED = (1, 32, 1024)
_SIZES = tuple(4**k for k in range(9))


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
        return cost(self.subject, route, tokens, training=training)

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
