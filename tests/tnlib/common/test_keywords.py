"""A keyword argument that a function does not have is answered with the one that it has."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import tnlib

X = np.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    ("function", "wrong", "right"),
    [
        (tnlib.cp_als, "ranks", "rank"),
        (tnlib.cp_als, "n_iter_max", "max_iter"),
        (tnlib.cp_als, "random_state", "rng"),
        (tnlib.mpo_decompose, "rank", "ranks"),
        (tnlib.mpo_decompose, "max_bond", "ranks"),
        (tnlib.mpo_decompose, "cutoff", "eps"),
        (tnlib.tt_svd, "epsilon", "eps"),
        (tnlib.tt_round, "rmax", "ranks"),
        (tnlib.tucker_hooi, "rank", "ranks"),
        (tnlib.tucker_hooi, "tolerance", "tol"),
        (tnlib.tucker_hosvd, "seed", "rng"),
        (tnlib.rank_profile, "verbose", "progress"),
        (tnlib.plan_contraction, "optimize", "minimize"),
    ],
)
def test_the_right_word_is_named(function: Any, wrong: str, right: str) -> None:
    text = rf"{function.__name__}\(\) got an unexpected keyword argument '{wrong}'; it is called "
    with pytest.raises(TypeError, match=f"{text}{right} here"):
        function(X, **{wrong: 2})


def test_where_no_word_is_near_all_are_listed() -> None:
    with pytest.raises(TypeError, match="'zzz'; it has X, ranks, eps, max_params, method, refine"):
        tnlib.tt_svd(X, zzz=1)  # type: ignore[call-arg]


def test_signatures_are_those_of_the_functions() -> None:
    assert [*inspect.signature(tnlib.tt_svd).parameters][:2] == ["X", "ranks"]
    assert tnlib.tt_svd.__module__ == "tnlib.trains.tt"
