"""Two tensor trains through a bottleneck, closest to given low-rank updates.

A train down to the bottleneck and one up from it are, with the bottleneck contracted, one train
over the modes of the input and then of the output. It is found as in
:mod:`tnlib_adapters.fitting.train`, and cut in the bottleneck with its singular values on both
sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import tt_svd
from tnlib_adapters.fitting.expert_bottleneck import fit_expert_bottleneck
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.fitting.train import Shape, joint_train, modes, placed, train_shapes
from tnlib_adapters.networks.network import Network


def fit_bottleneck(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64, of networks of the trains ``down_*`` and ``up_*``.

    Networks of experts, which have a core ``up_expert``, are fitted together.

    Where a bond is wider than the update needs, it is filled on its left as at the start of
    training and with zeros on its right.

    Raises
    ------
    ValueError
        If explicit shapes have a mode across the border of a width and the bottleneck.
    """
    experts: dict[str, list[str]] = {}
    for name, network in networks.items():
        if "up_expert" in network.shapes:
            experts.setdefault(name.rpartition("[")[0], []).append(name)
        else:
            _trains(name, network)
    found: dict[str, dict[str, Tensor]] = {}
    for name, network in tqdm(networks.items(), desc="fitting", unit="weight", disable=not show):
        if name in found:
            continue
        if "up_expert" not in network.shapes:
            found[name] = _weight(name, network, updates[name], generator)
            continue
        same = experts[name.rpartition("[")[0]]
        cores = fit_expert_bottleneck(network, [updates[other] for other in same], generator)
        found |= dict.fromkeys(same, cores)
    return found


def _weight(
    name: str, network: Network, update: LowRankUpdate, generator: torch.Generator
) -> dict[str, Tensor]:
    initial = {key: value.double() for key, value in network.initial(generator).items()}
    keys, (down, up), splits = _trains(name, network)
    middle = math.prod(modes(down)[splits[0] :])
    bonds = [[shape[-1] for shape in train[:-1]] for train in (down, up)]
    rank = min(middle, bonds[0][splits[0] - 1], bonds[1][splits[1] - 1])
    u, values, v = update.svd()
    if not values.any():
        return initial | {keys[1][-1]: torch.zeros_like(initial[keys[1][-1]])}
    before = (modes(down)[: splits[0]], [*bonds[0][: splits[0] - 1], rank])
    after = (modes(up)[splits[1] :], [rank, *bonds[1][splits[1] :]])
    columns, rows = joint_train(u, values, v, before, after)
    scale = math.sqrt(network.scale)
    found: dict[str, Tensor] = {}
    for train, names, matrix in zip(
        (down, up), keys, (widened(columns, middle), widened(rows, middle).mT), strict=True
    ):
        tensor = (matrix / scale).reshape(modes(train))
        fitted = tt_svd(tensor, [shape[-1] for shape in train[:-1]])
        found |= placed(fitted, network, names, initial)
    return found


def _trains(
    name: str, network: Network
) -> tuple[list[list[str]], list[list[Shape]], tuple[int, int]]:
    """Keys and shapes (r, n, r) of both trains, and how many modes come before their border."""
    keys = [[c.key for c in network.cores if c.key.startswith(side)] for side in ("down_", "up_")]
    shapes = [train_shapes(network, side) for side in keys]
    total = math.prod(modes(shapes[0]))
    middle = total // network.in_features
    splits = [
        next((k for k in range(1, len(train)) if math.prod(modes(train)[:k]) == width), 0)
        for train, width in zip(shapes, (network.in_features, middle), strict=True)
    ]
    if not all(splits):
        raise ValueError(
            f"{name}: shapes {modes(shapes[0])} and {modes(shapes[1])} have a mode across the "
            f"border of a width and the bottleneck of {middle}; only trains whose modes end there "
            "can be fitted. Give such shapes, or none"
        )
    return keys, shapes, (splits[0], splits[1])


def widened(columns: Tensor, width: int) -> Tensor:
    """The matrix with columns of zeros added."""
    return torch.nn.functional.pad(columns, (0, width - columns.shape[1]))
