"""Tensor networks for NumPy and torch arrays that know their own error."""

from tnlib.batch import mpo_decompose_batch
from tnlib.choice.allocate import Allocation, allocate_ranks
from tnlib.choice.dims import DimsSuggestion, DimsSuggestions, suggest_dims
from tnlib.choice.profile import RankProfile
from tnlib.choice.profiling import rank_profile
from tnlib.contraction import (
    Plan,
    PlansBySize,
    Roofline,
    contract,
    measure_roofline,
    plan_by_size,
    plan_contraction,
)
from tnlib.cp import CP, cp_als, cp_als_batch
from tnlib.cross import tt_cross
from tnlib.files import load, save
from tnlib.hooi import tucker_hooi
from tnlib.hosvd import tucker_hosvd
from tnlib.info import Info
from tnlib.interop import cp_constrained, from_tensorly, to_tensorly
from tnlib.mpo import MPO, mpo_decompose
from tnlib.permuting import tt_permute
from tnlib.random import mpo_random, tt_random
from tnlib.reshaping import tt_reshape
from tnlib.rounding import tt_round
from tnlib.shapes import factorize, quantized_dims
from tnlib.tt import TT, tt_svd
from tnlib.tucker import Tucker

__all__ = [
    "CP",
    "MPO",
    "TT",
    "Allocation",
    "DimsSuggestion",
    "DimsSuggestions",
    "Info",
    "Plan",
    "PlansBySize",
    "RankProfile",
    "Roofline",
    "Tucker",
    "allocate_ranks",
    "contract",
    "cp_als",
    "cp_als_batch",
    "cp_constrained",
    "factorize",
    "from_tensorly",
    "load",
    "measure_roofline",
    "mpo_decompose",
    "mpo_decompose_batch",
    "mpo_random",
    "plan_by_size",
    "plan_contraction",
    "quantized_dims",
    "rank_profile",
    "save",
    "suggest_dims",
    "to_tensorly",
    "tt_cross",
    "tt_permute",
    "tt_random",
    "tt_reshape",
    "tt_round",
    "tt_svd",
    "tucker_hooi",
    "tucker_hosvd",
]
