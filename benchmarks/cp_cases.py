"""Tensors of known terms, and the CP function of every library on one signature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import tnlib

PACKAGES = ["numpy", "scipy", "tensorly", "pyttb"]


@dataclass(frozen=True)
class Case:
    """A tensor of known terms. With a cosine, ALS has to cross a swamp to the `target`."""

    shape: tuple[int, ...]
    rank: int
    noise: float = 0.1
    cosine: float | None = None
    target: float | None = None

    @property
    def name(self) -> str:
        kind = f"noise {self.noise:g}" if self.cosine is None else f"collinearity {self.cosine:g}"
        kind = "noise alone" if math.isinf(self.noise) else kind
        return f"{self.shape[0]}^{len(self.shape)} rank {self.rank}, {kind}"


SWAMPS = [
    Case((20,) * 3, 5, noise=0.0, cosine=0.9, target=1e-6),
    Case((50,) * 3, 10, noise=0.0, cosine=0.9, target=1e-6),
]
QUICK = [Case((80,) * 3, 8), Case((30,) * 4, 6), Case((80,) * 3, 8, noise=math.inf), *SWAMPS]
CASES = [*QUICK, Case((400,) * 3, 32), Case((60,) * 4, 16)]


def tensor(case: Case) -> np.ndarray:
    """The sum of the terms plus noise of the given relative norm, or noise alone."""
    rng = np.random.default_rng(0)
    if math.isinf(case.noise):
        return rng.standard_normal(case.shape)
    factors = []
    for size in case.shape:
        factor = rng.standard_normal((size, case.rank))
        if case.cosine is not None:
            gram = (1 - case.cosine) * np.eye(case.rank) + case.cosine
            factor = np.linalg.qr(factor)[0] @ np.linalg.cholesky(gram).T
        factors.append(factor)
    array = tnlib.CP(np.ones(case.rank), tuple(factors)).to_dense()
    noise = rng.standard_normal(case.shape)
    array += noise * (case.noise * np.linalg.norm(array) / np.linalg.norm(noise))
    return array


def start(case: Case, seed: int) -> tnlib.CP:
    """Random factors, the same for every peer."""
    rng = np.random.default_rng(seed)
    factors = tuple(rng.standard_normal((size, case.rank)) for size in case.shape)
    return tnlib.CP(np.ones(case.rank), factors)


@dataclass(frozen=True)
class Peer:
    """How a library takes its data, which is not timed, and its function."""

    data: Callable[[np.ndarray], Any]
    run: Callable[[Any, tnlib.CP, float, int], tuple[Any, Any]]


def pyttb_data(array: np.ndarray) -> Any:
    import pyttb

    return pyttb.tensor(array)


def tensorly_als(array: np.ndarray, init: tnlib.CP, tol: float, sweeps: int) -> tuple[Any, Any]:
    from tensorly.cp_tensor import CPTensor
    from tensorly.decomposition import parafac

    begin = CPTensor((init.weights.copy(), [factor.copy() for factor in init.factors]))
    return tuple(parafac(array, init.rank, init=begin, tol=tol, n_iter_max=sweeps))


def pyttb_als(data: Any, init: tnlib.CP, tol: float, sweeps: int) -> tuple[Any, Any]:
    import pyttb

    begin = pyttb.ktensor([np.asfortranarray(factor) for factor in init.factors])
    model, _, _ = pyttb.cp_als(
        data, init.rank, stoptol=tol, maxiters=sweeps, init=begin, printitn=0
    )
    return model.weights, model.factor_matrices


def peers() -> dict[str, Peer]:
    found = {"tensorly parafac": Peer(np.asarray, tensorly_als)}
    if find_spec("pyttb"):
        found["pyttb cp_als"] = Peer(pyttb_data, pyttb_als)
    return found


def error_of(array: np.ndarray, result: Any) -> float:
    weights, factors = result
    model = tnlib.CP(np.asarray(weights), tuple(np.ascontiguousarray(f) for f in factors))
    return float(np.linalg.norm(model.to_dense() - array) / np.linalg.norm(array))
