"""What typed users write; mypy and pyright check it.

A line with ``# type: ignore`` is a wrong call: both checkers complain where it is none.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import tnlib

W: NDArray[np.float32] = np.ones((48, 64), np.float32)
X = torch.ones(4, 5, 6)
NumPy = np.ndarray[Any, np.dtype[Any]]


def wave(positions: NumPy) -> NumPy:
    return np.asarray(np.sin(positions.sum(1)))


def numpy_in_numpy_out() -> None:
    mpo = tnlib.mpo_decompose(W, ranks=4, method="svd")
    assert_type(mpo, tnlib.MPO[NumPy])
    assert_type(mpo.cores, tuple[NumPy, ...])
    assert_type(mpo.to_matrix(), NumPy)
    assert_type(mpo.matvec(np.ones(64, np.float32)), NumPy)
    assert_type(mpo.error, float | None)
    assert_type(mpo.ranks, tuple[int, ...])
    train = tnlib.tt_svd(W, eps=1e-3)
    assert_type(train, tnlib.TT[NumPy])
    assert_type(train + train, tnlib.TT[NumPy])
    assert_type(2 * train, tnlib.TT[NumPy])
    assert_type(train.canonical(0), tnlib.TT[NumPy])
    assert_type(tnlib.tt_round(mpo + mpo, ranks=2), tnlib.MPO[NumPy])
    assert_type(mpo.row(3), tnlib.TT[NumPy])
    assert_type(mpo.norm(), NumPy)
    assert_type(mpo @ mpo.T, tnlib.MPO[NumPy])
    assert_type(mpo @ mpo.row(0), tnlib.TT[NumPy])
    assert_type(mpo.gather(np.arange(3), np.arange(3)), NumPy)
    assert_type((mpo @ mpo.T).partial_trace(0), tnlib.MPO[NumPy])
    assert_type(train.lognorm(), NumPy)
    assert_type(train.entropies(), tuple[float, ...])
    assert_type(tnlib.tt_random((4, 5), 2), tnlib.TT[NumPy])
    assert_type(tnlib.tt_cross(wave, (4, 5)), tnlib.TT[NumPy])


def torch_in_torch_out() -> None:
    tucker = tnlib.tucker_hosvd(X, ranks=(2, 2, 2))
    assert_type(tucker.core, torch.Tensor)
    assert_type(tucker.factors, tuple[torch.Tensor, ...])
    cp = tnlib.cp_als(X, rank=2, init="random")
    assert_type(cp.weights, torch.Tensor)
    assert_type(cp.factors, tuple[torch.Tensor, ...])
    mpo = tnlib.mpo_decompose(torch.nn.Linear(8, 8).weight, 2)
    assert_type(mpo.to_matrix(), torch.Tensor)
    assert_type(tnlib.contract("ijk,ijk->i", X, X), torch.Tensor)
    plan = tnlib.plan_contraction("ijk,jl->ikl", X.shape, (5, 3), minimize="memory")
    assert_type(plan(X, torch.ones(5, 3)), torch.Tensor)
    assert_type(tnlib.contract(X, [0, 1, 2], X, [0, 1, 2], [0]), torch.Tensor)
    assert_type(tnlib.tt_random((4, 5), 2, like=X), tnlib.TT[torch.Tensor])
    known = tnlib.tucker_hooi(X, 2, mask=X > 0, init=tucker, fixed=(0,))
    assert_type(known.factors, tuple[torch.Tensor, ...])
    assert_type(known.modes, tuple[int, ...])


def files() -> None:
    for decomposition in tnlib.load("file.safetensors", library="torch").values():
        assert_type(decomposition.to_dense(), torch.Tensor)
    assert_type(tnlib.load("file.safetensors")["q"].error, float | None)


def choosing() -> None:
    named = tnlib.allocate_ranks({"q": W, "k": W}, max_params=2000)
    assert_type(named.ranks["q"], tuple[int, ...] | None)
    profile = tnlib.rank_profile(X, format="tt")
    assert_type(profile.best_ranks(eps=0.5), tuple[int, ...])
    assert_type(tnlib.suggest_dims(W)[0], tnlib.DimsSuggestion)


def wrong_calls() -> None:
    tnlib.mpo_decompose("W", 4)  # type: ignore
    tnlib.mpo_decompose(W, 4, method="svdd")  # type: ignore
    tnlib.cp_als(X, 2, init="hosdv")  # type: ignore
    tnlib.cp_als(X, 2, method="ls")  # type: ignore
    tnlib.tucker_hosvd(X, eps="small")  # type: ignore
    tnlib.rank_profile(W, format="cp")  # type: ignore
    tnlib.plan_contraction("ij,jk->ik", (2, 3), (3, 4), minimize="speed")  # type: ignore
    tnlib.tt_svd(W, 2) + tnlib.tt_svd(X, 2)  # type: ignore
    tnlib.mpo_decompose(W, 4).matvec(torch.ones(64))  # type: ignore
    tnlib.cp_als(X, 2, mask=W > 0)  # type: ignore
    tnlib.load("file.safetensors", library="jax")  # type: ignore
    tnlib.tt_svd(W, 2, dtype=8)  # type: ignore
    tnlib.tt_random((4, 5), 2, rng="seed")  # type: ignore
