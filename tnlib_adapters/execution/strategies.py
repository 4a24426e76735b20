"""The strategies to apply an update to a number of tokens, and which is predicted to be fastest.

A planned contraction of activations with cores passes the activations through a chain of products
with arrays that are made of cores alone. If every link of the chain is a matrix product, its
matrices are the *factors*: the update is applied as LoRA is. Otherwise the steps are run as they
are, through the *activations*. The *dense* update may also be formed and multiplied, or *fused*:
added to the base weight, so that one product serves both.

Over a base weight that is made dense for every call, an update in training is fused rather than
applied by a strategy that would save more for the backward pass than the activations that come in:
that saves nothing, and costs one product more than the base alone.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from typing import Protocol

from tnlib import Plan, plan_contraction
from tnlib_adapters.execution.base_weight import BaseKind
from tnlib_adapters.execution.cost_model import Cost, Factor, Strategy, Subject, cost
from tnlib_adapters.execution.planned_einsum import PlannedEinsum, planned_einsum

# Numbers of tokens for which orders are planned, and between which the strategies change.
_PLANNED = (1, 32, 1024)
_SIZES = tuple(4**k for k in range(9))
# Of several networks that are applied together, each by its own.
PER_PART = Strategy("parts")

Thresholds = tuple[tuple[int, ...], tuple[Strategy, ...]]


@dataclass(frozen=True)
class Strategies:
    """All strategies of one network, and the best one for a number of tokens."""

    subject: Subject
    all: tuple[Strategy, ...]

    def best(self, n_tokens: int, base: BaseKind, *, training: bool) -> Strategy:
        """The best strategy for so many rows of activations; gradients are recorded in training."""
        starts, strategies = self.table[training, base]
        index = 0
        for start in starts[1:]:
            # Plain comparisons, which a compiled graph can hold as guards.
            if n_tokens < start:
                break
            index += 1
        return strategies[index]

    def usable(self, base: BaseKind, *, training: bool) -> tuple[Strategy, ...]:
        """The strategies that there are to choose from."""
        return tuple(
            strategy
            for strategy in self.all
            if (base != "none" or strategy.name != "fused")
            and (training or not strategy.checkpointed)
        )

    def cost(self, strategy: Strategy, n_tokens: int, *, training: bool) -> Cost:
        """What a strategy costs."""
        return cost(self.subject, strategy, n_tokens, training=training)

    @cached_property
    def table(self) -> Mapping[tuple[bool, BaseKind], Thresholds]:
        """By (training, base): numbers of tokens from which strategies are best, and these."""
        found: dict[tuple[bool, BaseKind], Thresholds] = {}
        for training in (False, True):
            seconds = cache(partial(self._seconds, training))
            apart, dense = (
                self._thresholds(self.usable(base, training=training), seconds)
                for base in ("none", "dense")
            )
            found[training, "none"], found[training, "dense"] = apart, dense
            found[training, "packed"] = self._saving_little(dense) if training else dense
        return found

    def _seconds(self, training: bool, strategy: Strategy, n_tokens: int) -> float:
        return self.cost(strategy, n_tokens, training=training).seconds

    def _thresholds(
        self, usable: Sequence[Strategy], seconds: Callable[[Strategy, int], float]
    ) -> Thresholds:
        best = [min(usable, key=lambda strategy: seconds(strategy, size)) for size in _SIZES]
        starts, strategies = [0], best[:1]
        for k, strategy in enumerate(best):
            last = strategies[-1]
            if strategy is not last:
                between = range(_SIZES[k - 1], _SIZES[k] + 1)
                first = bisect.bisect_left(
                    between, True, key=lambda n: seconds(strategy, n) < seconds(last, n)
                )
                starts.append(between[first])
                strategies.append(strategy)
        return tuple(starts), tuple(strategies)

    def _saving_little(self, thresholds: Thresholds) -> Thresholds:
        """The same, fused where a strategy saves more than the activations that come in."""
        n_tokens, fused = 256, self.all[-1]
        size = 4 * n_tokens * math.prod(self.subject.in_sizes)
        pairs: list[tuple[int, Strategy]] = []
        for start, strategy in zip(*thresholds, strict=True):
            saved = self.cost(strategy, n_tokens, training=True).saved_bytes
            chosen = fused if saved > size else strategy
            if not pairs or pairs[-1][1] is not chosen:
                pairs.append((start, chosen))
        return tuple(start for start, _ in pairs), tuple(strategy for _, strategy in pairs)


class Applied(Protocol):
    """What is applied to activations: a network, or several that are the rows of one weight."""

    @property
    def strategies(self) -> tuple[Strategies, ...]:
        """Those of every network."""


def choose_strategy(network: Applied, base: BaseKind, n_tokens: int, *, training: bool) -> Strategy:
    """How an update is applied.

    Parameters
    ----------
    network : Applied
        The update.
    base : str
        Whether it may be added to the base weight ("dense", or "packed" for one that is made dense
        in every call), or not ("none").
    n_tokens : int
        Rows of the activations.
    training : bool
        Whether gradients are recorded.

    Returns
    -------
    Strategy
        "fused" where that is the best one for every network; of several networks otherwise
        :data:`PER_PART`, and each chooses with the base "none".
    """
    chosen = [part.best(n_tokens, base, training=training) for part in network.strategies]
    if len(chosen) == 1 or all(strategy.name == "fused" for strategy in chosen):
        return chosen[0]
    return PER_PART


def thresholds(
    network: Applied, part: int, base: BaseKind, *, training: bool
) -> list[tuple[int, Strategy]]:
    """What is chosen for one of the networks, with the number of tokens from which each is."""
    kinds: set[BaseKind] = {base, "none"}
    tables = [own.table[training, kind] for own in network.strategies for kind in kinds]
    starts = {start for starts, _ in tables for start in starts}
    found: list[tuple[int, Strategy]] = []
    for start in sorted({max(start, 1) for start in starts}):
        strategy = choose_strategy(network, base, start, training=training)
        if strategy is PER_PART:
            strategy = network.strategies[part].best(start, "none", training=training)
        if not found or found[-1][1] is not strategy:
            found.append((start, strategy))
    return found


@lru_cache(maxsize=4096)
def strategies_of(subject: Subject) -> Strategies:
    """Find the strategies of a network; equal networks of a model share them."""
    wants = subject.wants(True)
    made = [
        plan_contraction(subject.equation, *subject.arrays(n_tokens), requires_grad=wants)
        for n_tokens in _PLANNED
    ]
    plans = {plan.path: plan for plan in made}.values()
    found: list[Strategy] = []
    for plan in plans:
        factors = chain(plan)
        steps = PlannedEinsum.of(plan)
        if len(factors) > 1:
            entries = [math.prod(factor.shape) for factor in factors]
            found.append(Strategy("factors", steps, factors, scaled=entries.index(min(entries))))
        elif not factors:
            recomputed = Strategy("activations", steps, checkpointed=True)
            found += [Strategy("activations", steps), recomputed]
    return Strategies(subject, (*found, Strategy("dense"), Strategy("fused")))


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
        made = planned_einsum(equation, *(plan.shapes[n] for n in cores))
        shape = math.prod(sizes[i] for i in legs), math.prod(sizes[i] for i in kept)
        factors.append(Factor(tuple(n - 1 for n in cores), made, shape))
        number, legs = len(below) - 1, kept
    return tuple(factors)
