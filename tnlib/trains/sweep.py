"""One sweep of truncated splits: the engine behind ``tt_svd`` and ``mpo_decompose``.

TT-SVD (Oseledets, SIAM J. Sci. Comput. 33, 2011): split off one mode at a time with an
orthonormal basis and pass on the projected rest. Because every rest is a projection, the squared
errors of the splits add up exactly, which gives max_k tau_k <= error <= sqrt(sum_k tau_k^2) for
the tails tau_k of the unfoldings, and lets a tolerance that one split leaves unused go to the
later ones. The error that is reported is not this sum but the residual of the cores as returned,
rounded to their dtype, measured against the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import RNG
from tnlib.linalg import truncated_basis
from tnlib.linalg.preparation import Prepared, allowance, binds, budget, prepare, verify, within
from tnlib.ranks.budget import chain_ranks, checked
from tnlib.ranks.parameter_counts import ChainCount
from tnlib.result import Info
from tnlib.trains import core_algebra
from tnlib.trains.als import refined


@dataclass(frozen=True)
class Swept:
    """Cores (r, n, r), left-orthonormal but for the last, with their true relative error."""

    cores: tuple[Array, ...]
    error: float
    info: Info


def sweep(
    array: Array,
    axes: Sequence[int],
    modes: Sequence[int],
    *,
    ranks: tuple[int, ...] | None,
    eps: float | None,
    max_params: int | None,
    method: str,
    refine: int,
    rng: RNG,
    dtype: Any,
) -> Swept:
    """Decompose `array`, transposed by `axes` and read as a tensor of `modes`, into a train."""
    generator = backend.as_generator(rng)
    allowed = checked(max_params, ChainCount(tuple(modes)))
    prepared = prepare(array, dtype, axes)
    share = budget(eps, len(modes), prepared)
    if prepared.energy == 0.0:
        return _zero(array, modes, prepared, eps)
    data, total = prepared.data.reshape(-1), prepared.energy
    if allowed is not None:
        ranks = chain_ranks(prepared, modes, ranks, allowed, generator)
    limits = ranks or (None,) * (len(modes) - 1)

    def split(share: float | None) -> tuple[list[Array], list[float], tuple[str, ...]]:
        return split_all(data, modes, limits, share, total, method, generator)

    cores, discarded, kernels = within(split, share, total)
    trace: tuple[float, ...] = ()
    if refine and len(cores) > 1:
        cores, trace = refined(data, cores, total, refine)
    binding = binds(limits, [core.shape[-1] for core in cores])
    info = Info(
        kernels,
        tuple(d / total for d in discarded),
        eps,
        prepared.compute_name,
        n_iter=len(trace),
        reason="all sweeps done" if trace else "direct",
        trace=trace,
    )
    return finished(cores, prepared, array, None if binding else eps, info)


def finished(
    cores: list[Array], prepared: Prepared, like: Array, eps: float | None, info: Info
) -> Swept:
    """Cores as they are returned, with the error of just these, checked against `eps`."""
    data, total = prepared.data.reshape(-1), prepared.energy
    last = backend.owned(cores[-1])
    cores = [*cores[:-1], backend.times_power_of_two(last, prepared.exponent)]
    rounded = tuple(backend.restored(core, like, prepared.out) for core in cores)
    error = math.sqrt(core_algebra.residual(data, rounded, prepared.exponent) / total)
    verify(error, eps, prepared.out, info.kernels)
    return Swept(rounded, error, info)


def split_all(
    rest: Array,
    modes: Sequence[int],
    limits: Sequence[int | None],
    share: float | None,
    total: float,
    method: str,
    generator: Any,
    after: Sequence[Array] = (),
) -> tuple[list[Array], list[float], tuple[str, ...]]:
    """Split off every mode but the last: cores, discarded energies and kernels.

    `rest` holds the first mode and all that is right of it; where it is the center of a train,
    `after` are the right-orthonormal cores that follow, and discarded energies are measured.
    """
    cores: list[Array] = []
    discarded: list[float] = []
    kernels: list[str] = []
    rank = 1
    for k, mode in enumerate(modes[:-1]):
        matrix = rest.reshape(rank * mode, -1)
        basis = truncated_basis.truncated_basis(
            matrix,
            energy=max(total - math.fsum(discarded), 0.0),
            max_rank=limits[k],
            allowed=allowance(share, total, discarded, len(modes) - 1 - k),
            method=method,
            rng=generator,
        )
        cores.append(basis.vectors.reshape(rank, mode, -1))
        kernels.append(basis.kernel)
        rest, rank = basis.rest, basis.vectors.shape[1]
        lost = basis.discarded
        if after:
            lost = backend.residual_energy(matrix, basis.vectors, rest)
            rest = rest @ after[k].reshape(after[k].shape[0], -1)
        discarded.append(lost)
    cores.append(rest.reshape(rank, modes[-1], 1))
    return cores, discarded, tuple(kernels)


def _zero(array: Array, modes: Sequence[int], prepared: Prepared, eps: float | None) -> Swept:
    """The zero tensor: rank 1, error 0, orthonormal but for the last core."""
    splits = len(modes) - 1
    cores = zero_train(modes, array, prepared.out)
    info = Info(("identity",) * splits, (0.0,) * splits, eps, prepared.compute_name)
    return Swept(cores, 0.0, info)


def zero_train(modes: Sequence[int], like: Array, dtype: Any) -> tuple[Array, ...]:
    """Left-canonical cores of rank 1 for the zero array."""
    xp = array_namespace(like)
    cores = []
    for k, mode in enumerate(modes):
        core = xp.zeros((1, mode, 1), dtype=dtype, device=like.device)
        if k < len(modes) - 1:
            core[0, 0, 0] = 1
        cores.append(core)
    return tuple(cores)
