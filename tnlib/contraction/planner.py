"""``plan_contraction``: arguments, the search, and the plans that are kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache

from tnlib.arrays import checks
from tnlib.common.keywords import keywords_named
from tnlib.contraction import slicing
from tnlib.contraction.arguments import (
    DType,
    Operand,
    is_shape,
    itemsize_of,
    limit_of,
    positions,
    shape_of,
)
from tnlib.contraction.costed_trees import Way, Ways
from tnlib.contraction.interleaved import equation_of
from tnlib.contraction.network import Network, Shape, parsed
from tnlib.contraction.objective import OBJECTIVES, Minimize, Objective
from tnlib.contraction.plan import Plan
from tnlib.contraction.report import number
from tnlib.contraction.roofline import Roofline
from tnlib.contraction.search import candidates
from tnlib.contraction.tree import steps_of

# Ways whose time is predicted step by step, copies included.
_RANKED = 8


@keywords_named
def plan_contraction(
    equation: str | Operand,
    *operands: Operand,
    minimize: Minimize = "flops",
    memory_limit: float | None = None,
    slices: bool = False,
    requires_grad: Collection[int] | None = None,
    constants: Collection[int] = (),
    dtype: DType | None = None,
    roofline: Roofline | None = None,
    max_repeats: int = 32,
) -> Plan:
    """Find a good order of pairwise products for an einsum equation.

    Up to nine operands every order is considered, outer products included: rebuilding a matrix and
    applying it, going through the activations, and all between. Larger networks are searched by
    heuristics whose best results are repaired (``tnlib.contraction.search``); no result costs
    more operations than opt_einsum's ``auto``. Plans are kept, so that asking again is free.

    Parameters
    ----------
    equation : str
        Such as ``"ij,jk->ik"``; the result may be left out and an ellipsis used as in NumPy: axes
        of an ellipsis that have size one are broadcast, and summed where the result has no
        ellipsis. Named indices are not broadcast. The interleaved form is taken too, in which the
        list of its indices follows every operand: ``A, [0, 1], B, [1, 2], [0, 2]``.
    *operands : tuple of int or array
        A shape for each operand, or an array, of which shape and dtype are read.
    minimize : {"flops", "memory", "time"}, optional
        Operations, as opt_einsum's ``opt_cost`` counts them; bytes, those that exist at one time
        and those kept for the backward pass together; or seconds by a roofline, of forward and
        backward pass together.
    memory_limit : float, optional
        Largest allowed ``peak_bytes``.
    slices : bool, optional
        Whether the contraction may be repeated for every value of some indices where no order
        keeps the limit.
    requires_grad : collection of int, optional
        Positions of the operands that require a gradient; by default all that are not constant.
        Where they are given, operations of the forward and the backward pass are minimised
        together. Where not, those of the forward pass, to which the backward's are then
        proportional.
    constants : collection of int, optional
        Positions of operands whose values do not change. Steps that concern them alone are done
        once and not counted. Given as arrays they are folded into the plan, which is then called
        with the other operands; given as shapes, fold them later with :meth:`Plan.folded`.
    dtype : dtype or str, optional
        Type of the numbers, for their size; by default that in which the arrays are computed,
        which is float32 for half precision on NumPy, else the roofline's, else float32.
    roofline : Roofline, optional
        Rates of the machine, from :func:`measure_roofline` or a file; with it a plan predicts its
        time.
    max_repeats : int, optional
        Effort for a network of ten operands or more: tries of each heuristic.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the equation and the shapes do not fit, a position does not exist, a constant requires
        a gradient, "time" is asked for without a roofline, or no order keeps the memory limit.

    Examples
    --------
    >>> plan = plan_contraction("ij,jk,k->i", (9, 8), (8, 7), (7,))
    >>> plan.path, plan.flops
    (((1, 2), (0, 1)), 256)
    >>> print(plan_contraction("bi,ij,jk->bk", (4, 30), (30, 2), (2, 5), dtype="float64"))
    bi,ij,jk->bk
    step  arrays  contraction  flops  result  bytes
    t0    #0 #1   bi,ij->bj    480    4x2     64 B
    t1    t0 #2   bj,jk->bk    80     4x5     160 B
    total: flops 560; peak 224 B; backward flops 1120; saved 64 B
    """
    equation, operands = equation_of(equation, operands)
    shapes = tuple(shape_of(k, operand) for k, operand in enumerate(operands))
    network = parsed(equation, shapes)
    count = len(network.terms)
    fixed = positions("constants", constants, count)
    wanted = None if requires_grad is None else positions("requires_grad", requires_grad, count)
    both = sorted(set(fixed) & set(wanted or ()))
    if both:
        raise ValueError(f"operands {both} are constants and require a gradient; drop one of them")
    if slices and fixed:
        raise ValueError("slices=True and constants cannot be combined; drop one of them")
    if minimize not in OBJECTIVES:
        raise ValueError(f"minimize must be one of {', '.join(OBJECTIVES)}, got {minimize!r}")
    if roofline is not None and not isinstance(roofline, Roofline):
        raise TypeError(f"roofline must be a Roofline, got {type(roofline).__name__}")
    if minimize == "time" and roofline is None:
        raise ValueError(
            "minimize='time' needs the rates of the machine: pass roofline="
            "tnlib.measure_roofline(), or a stored one from tnlib.Roofline.load(path)"
        )
    plan = _planned(
        network.written,
        network.shapes,
        minimize,
        limit_of(memory_limit),
        bool(slices),
        wanted,
        fixed,
        itemsize_of(dtype, operands, roofline),
        roofline,
        checks.positive_int("max_repeats", max_repeats),
    )
    given = [operands[k] for k in fixed if not is_shape(operands[k])]
    if not given:
        return plan
    if len(given) < len(fixed):
        raise ValueError("give all constants as arrays, to fold them, or all as shapes")
    return plan.folded(*given)


@lru_cache(maxsize=1024)
def _planned(
    equation: str,
    shapes: tuple[Shape, ...],
    minimize: Minimize,
    memory_limit: float | None,
    slices: bool,
    requires_grad: tuple[int, ...] | None,
    constants: tuple[int, ...],
    itemsize: int,
    roofline: Roofline | None,
    max_repeats: int,
) -> Plan:
    network = parsed(equation, shapes)
    # The search fills the memories of its own copy, which goes with it.
    searched = replace(network)
    everything = range(len(network.terms))
    wanted = tuple(k for k in everything if k not in constants)
    if requires_grad is not None:
        wanted = requires_grad
    objective = Objective(
        minimize,
        sum(1 << k for k in wanted),
        sum(1 << k for k in constants),
        backward=minimize == "time" or requires_grad is not None,
        limit=None if memory_limit is None else int(memory_limit // itemsize),
        roofline=roofline if minimize == "time" else None,
    )
    sliced: tuple[str, ...] = ()
    found = candidates(Ways(searched, objective), max_repeats)
    if not found and slices:
        sliced, found = slicing.search(searched, objective, max_repeats)
    if not found:
        raise ValueError(_infeasible(searched, objective, itemsize, slices, max_repeats))

    def plan(way: Way) -> Plan:
        steps = steps_of(searched, way.tree)
        made = Plan(network, steps, itemsize, wanted, constants, sliced)
        return made if roofline is None else replace(made, seconds=made.predicted(roofline))

    if minimize != "time":
        return plan(found[0])
    return min((plan(way) for way in found[:_RANKED]), key=lambda made: made.seconds or 0.0)


def _infeasible(
    network: Network,
    objective: Objective,
    itemsize: int,
    slices: bool,
    max_repeats: int,
) -> str:
    """The message for a limit that nothing keeps, with the smallest peak there is."""
    least = replace(objective, minimize="memory", limit=None, requires_grad=0)
    lowest = candidates(Ways(network, least), max_repeats)[0].peak * itemsize
    advice = (
        "no slices keep the limit either; raise it" if slices else "raise it, or allow slices=True"
    )
    return (
        f"no order of contraction was found that keeps the memory limit; the smallest peak "
        f"found is {number(lowest, 17)} bytes for intermediate arrays and the result: {advice}"
    )
