"""A plan as a table for people."""

from __future__ import annotations

from decimal import Decimal

from tnlib.common.table import aligned
from tnlib.contraction import slicing
from tnlib.contraction.cost import product_flops
from tnlib.contraction.planned_steps import PlannedSteps

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(plan: PlannedSteps) -> str:
    """The steps with their operations and sizes, and the totals."""
    network = slicing.inner(plan.network, plan.sliced)
    count = len(network.terms)
    names = [f"#{k}" for k in range(count)] + [f"t{k}" for k in range(len(plan.steps))]
    rows = [("step", "arrays", "contraction", "flops", "result", "bytes")]
    for k, step in enumerate(plan.steps):
        masks = [network.mask(term) for term in step.terms]
        result = network.mask(step.result)
        arrays = " ".join(names[n] for n in step.inputs)
        shape = "x".join(str(network.sizes[index]) for index in step.result) or "1"
        flops = product_flops(network, masks[0], masks[-1], result)
        size = network.volume(result) * plan.itemsize
        rows.append((names[count + k], arrays, step.equation, number(flops), shape, bytes_(size)))
    return "\n".join([plan.equation, aligned(rows), totals(plan)])


def totals(plan: PlannedSteps) -> str:
    """One or two lines: operations, memory, what is folded, sliced and predicted."""
    parts = [f"flops {number(plan.flops)}", f"peak {bytes_(plan.peak_bytes)}"]
    if plan.requires_grad:
        parts.append(f"backward flops {number(plan.backward_flops)}")
        parts.append(f"saved {bytes_(plan.saved_bytes)}")
    if plan.constants:
        parts.append(f"folded once: flops {number(plan.folding_flops)}")
    if plan.sliced:
        parts.append(
            f"{number(plan.n_slices, 15)} slices over {', '.join(plan.sliced)}, of which the steps "
            "are one"
        )
    if plan.seconds is not None:
        parts.append(f"predicted {plan.seconds:.3g} s")
    return "total: " + "; ".join(parts)


def number(value: int, digits: int = 4) -> str:
    """A count to so many digits, also where it is beyond the range of a float."""
    try:
        return f"{float(value):.{digits}g}"
    except OverflowError:
        return f"{Decimal(value):.{digits - 1}e}"


def bytes_(count: int) -> str:
    """A number of bytes with a unit."""
    power = 0
    while power < len(_UNITS) - 1 and count >= 1024 ** (power + 1):
        power += 1
    try:
        value = f"{count / 1024**power:.4g}"
    except OverflowError:
        value = number(count // 1024**power)
    return f"{value} {_UNITS[power]}"
