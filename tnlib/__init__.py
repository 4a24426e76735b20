"""Tensor networks for NumPy and torch arrays that know their own error."""

from tnlib.contraction import Plan, plan_contraction
from tnlib.cp import CP
from tnlib.info import Info
from tnlib.mpo import MPO, mpo_decompose, mpo_random
from tnlib.rounding import tt_round
from tnlib.shapes import factorize, quantized_dims
from tnlib.tt import TT, tt_random, tt_svd
from tnlib.tucker import Tucker, tucker_hosvd

__all__ = [
    "CP",
    "MPO",
    "TT",
    "Info",
    "Plan",
    "Tucker",
    "factorize",
    "mpo_decompose",
    "mpo_random",
    "plan_contraction",
    "quantized_dims",
    "tt_random",
    "tt_round",
    "tt_svd",
    "tucker_hosvd",
]
__version__ = "0.1.0.dev0"
