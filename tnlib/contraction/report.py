"""A plan as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnlib._table import aligned
from tnlib.contraction import slicing
from tnlib.contraction.cost import product_flops

if TYPE_CHECKING:
    from tnlib.contraction.plan import Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(plan: Plan) -> str:
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
        rows.append((names[count + k], arrays, step.equation, f"{flops:.4g}", shape, bytes_(size)))
    return "\n".join([plan.equation, aligned(rows), totals(plan)])


def totals(plan: Plan) -> str:
    """One or two lines: operations, memory, what is folded, sliced and predicted."""
    parts = [f"flops {plan.flops:.4g}", f"peak {bytes_(plan.peak_bytes)}"]
    if plan.requires_grad:
        parts.append(f"backward flops {plan.backward_flops:.4g}")
        parts.append(f"saved {bytes_(plan.saved_bytes)}")
    if plan.constants:
        parts.append(f"folded once: flops {plan.folding_flops:.4g}")
    if plan.sliced:
        parts.append(
            f"{plan.n_slices} slices over {', '.join(plan.sliced)}, of which the steps are one"
        )
    if plan.seconds is not None:
        parts.append(f"predicted {plan.seconds:.3g} s")
    return "total: " + "; ".join(parts)


def bytes_(number: float) -> str:
    """A number of bytes with a unit."""
    for unit in _UNITS[:-1]:
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} {_UNITS[-1]}"
