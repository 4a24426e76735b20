"""Tensor networks for NumPy and torch arrays that know their own error."""

from tnlib.contraction import Plan, plan_contraction
from tnlib.mpo import MPO, mpo_decompose
from tnlib.shapes import factorize
from tnlib.tt import TT, tt_svd

__all__ = [
    "MPO",
    "TT",
    "Plan",
    "factorize",
    "mpo_decompose",
    "plan_contraction",
    "tt_svd",
]
__version__ = "0.1.0.dev0"
