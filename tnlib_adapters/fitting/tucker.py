"""Shared factors around a core per weight: a Tucker-2 decomposition of a stack of updates.

The updates of a sharing group, one below another, are a tensor (weights, out, in). Their left
factors side by side span at most the sum of the ranks, and so do the right ones: in orthonormal
bases of the two spans the tensor is small, and its decomposition is that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import tucker_hooi, tucker_hosvd
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.network import Network

# Sweeps end when one lowers the error by less than this; what is left beyond is a 10^-4 of it.
_TOLERANCE = 1e-5


def fit_tucker2(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64, of networks with the cores U, G and V in this order.

    Columns of U and V that the updates do not need are drawn as at the start of training, and
    their part of G is zero. Memory goes with n p q for n weights in a group, where p and q are at
    most the sum of the ranks.
    """
    groups: dict[str, list[str]] = {}
    for name, network in networks.items():
        groups.setdefault(network.cores[0].key, []).append(name)
    found: dict[str, dict[str, Tensor]] = {}
    for names in tqdm(groups.values(), desc="fitting", unit="group", disable=not show):
        found |= _group({n: networks[n] for n in names}, [updates[n] for n in names], generator)
    return found


def _group(
    networks: Mapping[str, Network], updates: list[LowRankUpdate], generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    first = next(iter(networks.values()))
    u, own, v = first.cores
    initial = {key: value.double() for key, value in first.initial(generator).items()}
    left, cores, right = tucker2(updates, first.shapes[u.key][1], generator)
    # The method starts with columns of about this length.
    lengths = [core.initializer.size * math.sqrt(first.shapes[core.key][0]) for core in (u, v)]
    full_u, full_v = initial[u.key], initial[v.key]
    full_u[:, : left.shape[1]] = left * lengths[0]
    full_v[:, : right.shape[1]] = right * lengths[1]
    found = {}
    for (name, network), core in zip(networks.items(), cores, strict=True):
        g = torch.zeros(network.shapes[own.key], dtype=torch.float64)
        g[: core.shape[0], : core.shape[1]] = core / (network.scale * math.prod(lengths))
        found[name] = {u.key: full_u, own.key: g, v.key: full_v}
    return found


def tucker2(
    updates: list[LowRankUpdate], rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal U (out, r), cores (n, r, s) and orthonormal V (in, s), with r, s <= `rank`."""
    outer = torch.linalg.qr(torch.cat([update.left for update in updates], 1))[0]
    inner = torch.linalg.qr(torch.cat([update.right for update in updates], 0).mT)[0]
    stack = torch.stack([(outer.mT @ f.left) @ (f.right @ inner) for f in updates])
    ranks = (min(rank, stack.shape[1]), min(rank, stack.shape[2]))
    start = tucker_hosvd(stack, ranks, modes=(1, 2), rng=generator)
    better = tucker_hooi(stack, ranks, modes=(1, 2), init=start, tol=_TOLERANCE, rng=generator)
    best = min(start, better, key=lambda tucker: tucker.error or 0.0)
    u, v = best.factors
    return outer @ u, torch.as_tensor(best.core), inner @ v
