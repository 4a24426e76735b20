"""Tensor networks for NumPy and torch arrays that know their own error."""

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
from tnlib.cross.tt_cross import tt_cross
from tnlib.interop.conversions import cp_constrained, from_tensorly, to_tensorly
from tnlib.io.files import load, save
from tnlib.mode_sizes import factorize, quantized_dims
from tnlib.ranks.allocate import Allocation, allocate_ranks
from tnlib.ranks.profile import RankProfile
from tnlib.ranks.profile_array import rank_profile
from tnlib.result import Info
from tnlib.surveys.result import Survey, SurveyedMatrix
from tnlib.surveys.survey import survey
from tnlib.trains.batch import mpo_decompose_batch
from tnlib.trains.mpo import MPO, mpo_decompose
from tnlib.trains.permuting import tt_permute
from tnlib.trains.random import mpo_random, tt_random
from tnlib.trains.reshaping import tt_reshape
from tnlib.trains.rounding import tt_round
from tnlib.trains.suggest_dims import DimsSuggestion, DimsSuggestions, suggest_dims
from tnlib.trains.tt import TT, tt_svd
from tnlib.tucker.format import Tucker
from tnlib.tucker.hooi import tucker_hooi
from tnlib.tucker.hosvd import tucker_hosvd

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
    "Survey",
    "SurveyedMatrix",
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
    "survey",
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
