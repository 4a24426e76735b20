"""The matrix-to-MPO function of every library, on one signature.

Each takes a float32 NumPy matrix, row and column modes, and ranks or eps, and returns its cores
as (r, i, j, r) NumPy arrays. None stands for what a library cannot do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tnlib


@dataclass(frozen=True)
class Case:
    """A matrix to decompose and what is asked of the result."""

    name: str
    shape: tuple[int, int]
    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    rank: int | None = None
    eps: float | None = None


def ours(matrix: np.ndarray, case: Case) -> list[Any]:
    mpo = tnlib.mpo_decompose(
        matrix, case.rank, eps=case.eps, row_dims=case.row_dims, col_dims=case.col_dims
    )
    return list(mpo.cores)


def ours_torch(matrix: np.ndarray, case: Case) -> list[Any]:
    return [core.numpy() for core in ours(torch.from_numpy(matrix), case)]


def tensorly(matrix: np.ndarray, case: Case, svd: str) -> list[Any]:
    from tensorly.decomposition import tensor_train_matrix

    tensor = matrix.reshape(case.row_dims + case.col_dims)
    sizes = [i * j for i, j in zip(case.row_dims, case.col_dims, strict=True)]
    bonds = [
        min(case.rank or 0, math.prod(sizes[:k]), math.prod(sizes[k:]))
        for k in range(1, len(sizes))
    ]
    return list(tensor_train_matrix(tensor, rank=[1, *bonds, 1], svd=svd))


def torchtt(matrix: np.ndarray, case: Case) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchtt as library

    tensor = torch.from_numpy(matrix).reshape(case.row_dims + case.col_dims)
    shape = list(zip(case.row_dims, case.col_dims, strict=True))
    limits = {"eps": case.eps or 1e-12, "rmax": case.rank or 10**9}
    return [core.numpy() for core in library.TT(tensor, shape=shape, **limits).cores]


def quimb(matrix: np.ndarray, case: Case) -> list[Any]:
    import quimb.tensor as library

    splits = len(case.row_dims) - 1
    cutoff = 0.0 if case.eps is None else case.eps**2 / splits
    mpo = library.MatrixProductOperator.from_dense(
        matrix, dims=case.row_dims, max_bond=case.rank, cutoff=cutoff, cutoff_mode="rsum2"
    )
    mpo.permute_arrays("lrud")
    arrays = list(mpo.arrays)
    arrays[0], arrays[-1] = arrays[0][None], np.expand_dims(arrays[-1], 1)
    return [np.transpose(core, (0, 2, 3, 1)) for core in arrays]


def available(case: Case) -> dict[str, Callable[[np.ndarray, Case], list[Any]]]:
    """The peers that can do `case`, ours first."""
    peers: dict[str, Callable[[np.ndarray, Case], list[Any]]] = {
        "tnlib": ours,
        "tnlib (torch)": ours_torch,
    }
    if case.rank is not None:
        peers["tensorly"] = lambda matrix, c: tensorly(matrix, c, "truncated_svd")
        peers["tensorly randomised"] = lambda matrix, c: tensorly(matrix, c, "randomized_svd")
    if _installed("torchtt"):
        peers["torchTT"] = torchtt
    if case.row_dims == case.col_dims and _installed("quimb"):
        peers["quimb"] = quimb
    return peers


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
