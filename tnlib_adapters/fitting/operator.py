"""A matrix product operator closest to given updates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import mpo_decompose
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.fitting.train import placed
from tnlib_adapters.networks.network import Network


def fit_operator(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64, of operators with cores (r, i, j, r).

    Where a bond is wider than the update needs, it is filled on its left as at the start of
    training and with zeros on its right.
    """
    found = {}
    for name, network in tqdm(networks.items(), desc="fitting", unit="weight", disable=not show):
        shapes = network.shapes
        mpo = mpo_decompose(
            updates[name].dense() / network.scale,
            [shape[-1] for shape in shapes.values()][:-1],
            row_dims=[shape[1] for shape in shapes.values()],
            col_dims=[shape[2] for shape in shapes.values()],
            rng=generator,
        )
        initial = {key: value.double() for key, value in network.initial(generator).items()}
        found[name] = placed(mpo.as_tt(), network, shapes, initial)
    return found
