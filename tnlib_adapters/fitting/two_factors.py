"""Two factors per weight, closest to given updates: their singular value decompositions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.network import Network


def fit_two_factors(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores ``b`` (out, r) and ``a`` (r, in) by weight, in float64; what is left over is zero."""
    found = {}
    for name, network in tqdm(networks.items(), desc="fitting", unit="weight", disable=not show):
        u, values, v = updates[name].svd()
        b, a = (torch.zeros(network.shapes[key], dtype=torch.float64) for key in ("b", "a"))
        count = min(len(a), len(values))
        b[:, :count] = u[:, :count] * values[:count] / network.scale
        a[:count] = v[:, :count].mT
        found[name] = {"b": b, "a": a}
    return found
