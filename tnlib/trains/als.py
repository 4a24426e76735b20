"""Alternating least squares on the cores of a train, at fixed ranks.

With orthonormal interfaces on both sides of core k, the core that is closest to the data X is the
projection L_k^H X R_k^H, so an update can only lower the error (Holtz, Rohwedder and Schneider,
SIAM J. Sci. Comput. 34, 2012). A sweep goes from right to left and back. The products L_k^H X that
an update needs are the rests of the sweep that came from the other side, so a sweep costs about
as much as projecting the data twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg.basis import orthogonal_factors


def refined(
    data: Array, cores: Sequence[Array], total: float, sweeps: int
) -> tuple[list[Array], tuple[float, ...]]:
    """Left-canonical cores after `sweeps` sweeps over flat `data`, and the errors after each.

    The errors are those of projections, sqrt(1 - |center|^2 / |data|^2).
    """
    modes = [core.shape[1] for core in cores]
    xp = array_namespace(data)
    axes = tuple(range(len(modes)))[::-1]
    mirrored = xp.permute_dims(data.reshape(modes), axes).reshape(-1)
    cores = list(cores)
    trace = []
    for _ in range(sweeps):
        cores = _mirrored(_half_sweep(data, cores))
        cores = _mirrored(_half_sweep(mirrored, cores))
        held = backend.energy(cores[-1])
        trace.append(math.sqrt(max(1 - held / total, 0.0)))
    return cores, tuple(trace)


def _half_sweep(data: Array, cores: list[Array]) -> list[Array]:
    """From left-canonical to right-canonical cores, each the best for the others."""
    rests = [data.reshape(1, -1)]
    for core in cores[:-1]:
        rank, mode, bond = core.shape
        rests.append(backend.adjoint(core.reshape(-1, bond)) @ rests[-1].reshape(rank * mode, -1))
    done: list[Array] = []
    for core in reversed(cores[1:]):
        best = _contracted(rests.pop(), done)
        columns, _ = orthogonal_factors(backend.adjoint(best))
        mode = core.shape[1]
        done.insert(0, backend.adjoint(columns).reshape(-1, mode, best.shape[1] // mode))
    first = _contracted(rests.pop(), done)
    return [first.reshape(1, cores[0].shape[1], -1), *done]


def _contracted(rest: Array, right: Sequence[Array]) -> Array:
    """Project `rest`, of shape (r, n_k ... n_d), on right-orthonormal cores k + 1 to d."""
    rows = rest.shape[0]
    for core in reversed(right):
        rest = rest.reshape(-1, core.shape[1] * core.shape[2]) @ backend.adjoint(
            core.reshape(core.shape[0], -1)
        )
    return rest.reshape(rows, -1)


def _mirrored(cores: Sequence[Array]) -> list[Array]:
    """The same train read from right to left."""
    xp = array_namespace(*cores)
    return [xp.permute_dims(core, (2, 1, 0)) for core in reversed(cores)]
