"""Contraction of whole networks, planned beforehand as a sequence of pairwise products."""

from tnlib.contraction.by_size import PlansBySize, plan_by_size
from tnlib.contraction.measure import measure_roofline
from tnlib.contraction.one_call import contract
from tnlib.contraction.plan import Plan
from tnlib.contraction.planner import plan_contraction
from tnlib.contraction.roofline import Roofline

__all__ = [
    "Plan",
    "PlansBySize",
    "Roofline",
    "contract",
    "measure_roofline",
    "plan_by_size",
    "plan_contraction",
]
