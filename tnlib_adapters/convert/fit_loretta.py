"""LoRETTA rep closest to given low-rank updates: a tensor train through the bottleneck.

A train down to the bottleneck and one up from it are, with the bottleneck contracted, one train
over the modes of the input and then of the output. Its sequential SVD is taken on the factors of
the singular value decomposition W = U S V^T, so that no dense update is formed: first on V S, whose
unfoldings have the singular values of the update's, then on the update projected on what that
kept. The result is cut in the bottleneck with its singular values on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import tt_svd
from tnlib_adapters.convert.read_lora import LowRank
from tnlib_adapters.networks.network import Network

Shape = tuple[int, int, int]


def fit_loretta(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRank],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64.

    Where a bond is wider than the update needs, it is filled on its left as at the start of
    training and with zeros on its right.

    Raises
    ------
    ValueError
        If explicit shapes have a mode across the border of a width and the bottleneck.
    """
    for name, network in networks.items():
        _trains(name, network)
    weights = tqdm(networks.items(), desc="LoRETTA", unit="weight", disable=not show)
    return {name: _weight(name, net, updates[name], generator) for name, net in weights}


def _weight(
    name: str, network: Network, update: LowRank, generator: torch.Generator
) -> dict[str, Tensor]:
    initial = {key: value.double() for key, value in network.initial(generator).items()}
    keys, (down, up), splits = _trains(name, network)
    middle = math.prod(modes(down)[splits[0] :])
    bonds = [[shape[-1] for shape in train[:-1]] for train in (down, up)]
    rank = min(middle, bonds[0][splits[0] - 1], bonds[1][splits[1] - 1])
    u, values, v = svd(update)
    if not values.any():
        return initial | {keys[1][-1]: torch.zeros_like(initial[keys[1][-1]])}
    before = (modes(down)[: splits[0]], [*bonds[0][: splits[0] - 1], rank])
    after = (modes(up)[splits[1] :], [rank, *bonds[1][splits[1] :]])
    columns, rows = joint_train(u, values, v, before, after)
    scale = math.sqrt(network.scale)
    found = {}
    for train, names, matrix in zip(
        (down, up), keys, (widened(columns, middle), widened(rows, middle).mT), strict=True
    ):
        tensor = (matrix / scale).reshape(modes(train))
        cores = tt_svd(tensor, [shape[-1] for shape in train[:-1]]).balanced().cores
        for key, core, shape in zip(names, cores, train, strict=True):
            kept = filled(torch.as_tensor(core), initial[key].reshape(shape))
            found[key] = kept.reshape(network.shapes[key])
    return found


def joint_train(
    u: Tensor,
    values: Tensor,
    v: Tensor,
    before: tuple[Sequence[int], Sequence[int]],
    after: tuple[Sequence[int], Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Factors (in, r) and (out, r) of a train near ``(v * values) @ u.T``, balanced.

    Parameters
    ----------
    u, v : Tensor, shapes (out, R) and (in, R)
        Orthonormal columns.
    values : Tensor, shape (R,)
        Singular values.
    before, after : (modes, ranks)
        Modes of the input and of the output; the bonds behind the first and before the others.
    """
    first = v * values
    kept = tt_svd(first.reshape(*before[0], -1), list(before[1])).to_dense().reshape(first.shape)
    basis, found, _ = torch.linalg.svd(kept, full_matrices=False)
    basis = basis[:, : before[1][-1]][:, found[: before[1][-1]] > found[0] * 1e-14]
    rest = (basis.mT @ first) @ u.mT
    train = tt_svd(rest.reshape(len(rest), *after[0]), list(after[1]))
    p, s, w = torch.linalg.svd(train.to_dense().reshape(rest.shape), full_matrices=False)
    return basis @ (p * s.sqrt()), w.mT * s.sqrt()


def svd(update: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, R), singular values and V (in, R) of a product of two factors."""
    outer, first = torch.linalg.qr(update.left)
    inner, second = torch.linalg.qr(update.right.mT)
    u, values, vh = torch.linalg.svd(first @ second.mT, full_matrices=False)
    return outer @ u, values, inner @ vh.mT


def _trains(
    name: str, network: Network
) -> tuple[list[list[str]], list[list[Shape]], tuple[int, int]]:
    """Keys and shapes (r, n, r) of both trains, and how many modes come before their border."""
    keys = [[c.key for c in network.cores if c.key.startswith(side)] for side in ("down_", "up_")]
    shapes = []
    for side in keys:
        full = [network.shapes[key] for key in side]
        shapes.append([(shape[0], math.prod(shape[1:-1]), shape[-1]) for shape in full])
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


def modes(train: Sequence[Shape]) -> list[int]:
    """The modes of cores of shapes (r, n, r)."""
    return [shape[1] for shape in train]


def widened(columns: Tensor, width: int) -> Tensor:
    """The matrix with columns of zeros added."""
    return torch.nn.functional.pad(columns, (0, width - columns.shape[1]))


def filled(core: Tensor, initial: Tensor) -> Tensor:
    """A core (r, n, r) in the place of a larger one: what is more of its left bond is zero."""
    full = initial.clone()
    full[core.shape[0] :] = 0
    full[: core.shape[0], :, : core.shape[2]] = core
    return full
