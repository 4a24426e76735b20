"""Plans for an index whose size is not known beforehand, such as the number of tokens.

The operations of any one order are a + b n for a size n: every step has the index or does not. The
best orders form the lower envelope of such lines, which has few corners. They are found by planning
at the ends and, again and again, where two neighbours cost the same (Eisner and Severance, J. ACM
23, 1976).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypedDict, Unpack

from tnlib.arrays import checks
from tnlib.contraction.arguments import DType
from tnlib.contraction.network import parsed
from tnlib.contraction.objective import Minimize
from tnlib.contraction.plan import Plan
from tnlib.contraction.planner import plan_contraction
from tnlib.contraction.roofline import Roofline


class Options(TypedDict, total=False):
    """Those of a plan whose limits do not depend on the size."""

    minimize: Minimize
    requires_grad: Collection[int] | None
    constants: Collection[int]
    dtype: DType | None
    roofline: Roofline | None
    max_repeats: int


@dataclass(frozen=True)
class PlansBySize:
    """The best plan for every size of one index.

    Attributes
    ----------
    plans : tuple of Plan
        In the order of growing size.
    breakeven : tuple of int
        Plan k + 1 is better than plan k from ``breakeven[k]`` on; one entry less than plans.
    largest : int
        Size up to which this was looked at; the last plan serves larger ones too.

    Examples
    --------
    >>> found = plan_by_size("bi,ir,ro->bo", ("tokens", 64), (64, 48), (48, 64))
    >>> found.breakeven, [[step.equation for step in plan.steps] for plan in found.plans]
    ((97,), [['bi,ir->br', 'br,ro->bo'], ['ir,ro->io', 'bi,io->bo']])
    """

    plans: tuple[Plan, ...]
    breakeven: tuple[int, ...]
    largest: int

    def at(self, size: int) -> Plan:
        """The plan for a size.

        Examples
        --------
        >>> found = plan_by_size("bi,ir,ro->bo", ("tokens", 64), (64, 48), (48, 64))
        >>> found.at(1).path, found.at(4096).path
        (((0, 1), (0, 1)), ((1, 2), (0, 1)))
        """
        checks.positive_int("size", size, least=0)
        return self.plans[bisect.bisect_right(self.breakeven, size)]

    def __str__(self) -> str:
        pairs = zip((1, *self.breakeven), self.plans, strict=True)
        return "\n\n".join(f"from size {start}:\n{plan}" for start, plan in pairs)


def plan_by_size(
    equation: str,
    *shapes: Sequence[int | str],
    largest: int = 1 << 20,
    **options: Unpack[Options],
) -> PlansBySize:
    """Find the best plan for every size of one index, and the sizes at which it changes.

    Parameters
    ----------
    equation : str
        Such as ``"bi,ij->bj"``.
    *shapes : sequence of int or str
        A shape for each operand; the index of unknown size has a name instead of a number, as in
        ``("tokens", 768)``.
    largest : int, optional
        Largest size that is looked at.
    **options
        Those of :func:`plan_contraction`, without `memory_limit` and `slices`.

    Returns
    -------
    PlansBySize

    Raises
    ------
    TypeError, ValueError
        As :func:`plan_contraction`, or if not exactly one index has a name.

    Notes
    -----
    For operations the sizes are exact wherever the planner is (up to nine operands). Bytes and
    predicted seconds are nearly linear in the size; there an order that is best in a short interval
    between two others may be missed.

    Examples
    --------
    >>> found = plan_by_size("bi,ir,ro->bo", ("tokens", 64), (64, 48), (48, 64))
    >>> found.breakeven, [plan.steps[0].equation for plan in found.plans]
    ((97,), ['bi,ir->br', 'ir,ro->io'])
    >>> found.at(96) is found.plans[0], found.at(97) is found.plans[1]
    (True, True)
    """
    most = checks.positive_int("largest", largest)
    for k, shape in enumerate(shapes):
        if isinstance(shape, str) or not isinstance(shape, Sequence):
            raise TypeError(f"operand {k} must be a shape, got {type(shape).__name__}")
    names = sorted({size for shape in shapes for size in shape if isinstance(size, str)})
    if len(names) != 1:
        raise ValueError(
            f"exactly one index must have a name instead of a size, as in ('tokens', 768), got "
            f"{names or 'none'}"
        )

    refused = sorted({"memory_limit", "slices"} & set(options))
    if refused:
        raise ValueError(f"{refused[0]} cannot be kept for all sizes; plan for the size instead")
    terms = parsed(equation, [tuple(2 for _ in shape) for shape in shapes]).terms
    axes = zip("".join(terms), (n for shape in shapes for n in shape), strict=True)
    indices = sorted({index for index, size in axes if isinstance(size, str)})
    if len(indices) > 1:
        raise ValueError(f"one index can have a name, got {', '.join(indices)}")
    fixed = {
        key: tuple(value) if isinstance(value, Collection) and not isinstance(value, str) else value
        for key, value in options.items()
    }
    return _found(equation, tuple(map(tuple, shapes)), names[0], most, tuple(fixed.items()))


@lru_cache(maxsize=1024)
def _found(
    equation: str,
    shapes: tuple[tuple[int | str, ...], ...],
    name: str,
    most: int,
    chosen: tuple[tuple[str, Any], ...],
) -> PlansBySize:
    options = dict(chosen)

    def sized(size: int) -> list[tuple[Any, ...]]:
        return [tuple(size if n == name else n for n in shape) for shape in shapes]

    def planned(size: int) -> Plan:
        return plan_contraction(equation, *sized(size), **options)

    def moved(plan: Plan, size: int) -> Plan:
        made = plan.resized(*sized(size))
        rates = options.get("roofline")
        return made if rates is None else replace(made, seconds=made.predicted(rates))

    def cost(plan: Plan, size: int) -> float:
        return _cost(moved(plan, size), options)

    segments = _envelope(planned, cost, 1, planned(1), most, planned(most))
    plans = tuple(moved(plan, start) for start, plan in segments)
    return PlansBySize(plans, tuple(start for start, _ in segments[1:]), most)


def _cost(plan: Plan, options: dict[str, Any]) -> float:
    """What was minimised, for the sizes of this plan."""
    minimize = options.get("minimize", "flops")
    if minimize == "memory":
        return plan.peak_bytes + plan.saved_bytes
    if minimize == "time":
        return plan.seconds or 0.0
    backward = options.get("requires_grad") is not None
    return plan.flops + backward * plan.backward_flops


def _envelope(
    planned: Callable[[int], Plan],
    cost: Callable[[Plan, int], float],
    low: int,
    first: Plan,
    high: int,
    last: Plan,
) -> list[tuple[int, Plan]]:
    """Where each plan starts to be the best one, from `low`, where `first` is, to `high`."""
    if not cost(last, high) < cost(first, high):
        return [(low, first)]
    sizes = range(low, high + 1)
    at = low + bisect.bisect_left(sizes, True, key=lambda n: cost(last, n) < cost(first, n))
    for size in (at - 1, at):
        if not low < size < high:
            continue
        between = planned(size)
        if cost(between, size) < min(cost(first, size), cost(last, size)):
            before = _envelope(planned, cost, low, first, size, between)
            return before + _envelope(planned, cost, size, between, high, last)[1:]
    return [(low, first), (at, last)]
