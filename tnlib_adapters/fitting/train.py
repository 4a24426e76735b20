"""A tensor train over the modes of rows and columns, closest to given low-rank updates.

Its sequential SVD is taken on the factors of the singular value decomposition W = U S V^T, so that
no dense update is formed: first on one side with the singular values, whose unfoldings have the
singular values of the update's, then on the update projected on what that kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tnlib import TT, tt_svd
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.network import Network

Shape = tuple[int, int, int]


def fit_train(
    networks: Mapping[str, Network],
    updates: Mapping[str, LowRankUpdate],
    generator: torch.Generator,
    *,
    show: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Cores by weight and key, in float64, of trains over the modes of the rows, then the columns.

    Where a bond is wider than the update needs, it is filled on its left as at the start of
    training and with zeros on its right.
    """
    weights = tqdm(networks.items(), desc="fitting", unit="weight", disable=not show)
    return {name: _weight(net, updates[name], generator) for name, net in weights}


def _weight(
    network: Network, update: LowRankUpdate, generator: torch.Generator
) -> dict[str, Tensor]:
    initial = {key: value.double() for key, value in network.initial(generator).items()}
    shapes = train_shapes(network, network.shapes)
    sizes, bonds = modes(shapes), [shape[-1] for shape in shapes[:-1]]
    border = next(k for k in range(1, len(sizes)) if math.prod(sizes[:k]) == network.out_features)
    u, values, v = update.svd()
    if not values.any():
        return initial | {network.cores[0].key: torch.zeros_like(initial[network.cores[0].key])}
    before, after = (sizes[:border], bonds[:border]), (sizes[border:], bonds[border - 1 :])
    rows, columns = joint_train(v, values, u, before, after)
    middle = rows.shape[1]
    left = tt_svd((rows / network.scale).reshape(*before[0], middle), before[1]).cores
    right = tt_svd(columns.mT.reshape(middle, *after[0]), after[1]).cores
    joint = torch.as_tensor(left[-1])[..., 0] @ torch.as_tensor(right[0])[0]
    last = torch.tensordot(torch.as_tensor(left[-2]), joint, 1)
    train = TT((*map(torch.as_tensor, left[:-2]), last, *map(torch.as_tensor, right[1:])))
    return placed(train, network, network.shapes, initial)


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


def modes(train: Sequence[Shape]) -> list[int]:
    """The modes of cores of shapes (r, n, r)."""
    return [shape[1] for shape in train]


def train_shapes(network: Network, keys: Iterable[str]) -> list[Shape]:
    """Shapes (r, n, r) of some cores, whose open legs are one mode."""
    shapes = [network.shapes[key] for key in keys]
    return [(shape[0], math.prod(shape[1:-1]), shape[-1]) for shape in shapes]


def placed(
    train: TT[Tensor], network: Network, keys: Collection[str], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A train, balanced, as some cores of a network, which may have larger bonds.

    What is more of a core's left bond is zero, so that the train is the same.
    """
    found = {}
    for key, core, shape in zip(
        keys, train.balanced().cores, train_shapes(network, keys), strict=True
    ):
        full = initial[key].reshape(shape).clone()
        full[core.shape[0] :] = 0
        full[: core.shape[0], :, : core.shape[2]] = core
        found[key] = full.reshape(network.shapes[key])
    return found
